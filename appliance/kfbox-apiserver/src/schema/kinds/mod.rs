pub fn validate_builtin(_group: &str, _version: &str, _kind: &str, _value: &serde_json::Value, _old: Option<&serde_json::Value>) -> Vec<super::FieldError> { Vec::new() }
