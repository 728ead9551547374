pub fn default_builtin(_group: &str, _version: &str, _kind: &str, _value: &mut serde_json::Value) {}
