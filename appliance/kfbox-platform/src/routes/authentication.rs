//! Istio's RequestAuthentication, as the box reads it:
//! <https://istio.io/latest/docs/reference/config/security/request_authentication/>, with the rules of
//! <https://istio.io/latest/docs/reference/config/security/jwt/>
//!
//! The gateway knows who asks before it looks at any route, by its own issuer alone and for every Service. So an object can
//! say nothing that is not so already, and is told of everything that it hopes for beyond.

use super::read::{Problems, items, only, text};
use serde_json::Value;

pub fn read(issuer: &str, spec: &Value) -> Problems {
    let mut problems = Problems::new();
    only(spec, "spec", &["jwtRules"], &["selector", "targetRef", "targetRefs"], &mut problems);
    if !spec["jwtRules"].is_null() && !spec["jwtRules"].is_array() {
        problems.push("spec.jwtRules must be a list".into());
    }
    for (n, rule) in items(&spec["jwtRules"]).iter().enumerate() {
        let at = format!("spec.jwtRules[{n}]");
        if text(rule, "issuer") != issuer {
            problems.push(format!("{at}: only tokens of {issuer} are taken, and others are refused"));
        }
        // Tokens do not travel on, which is what `false` asks for.
        let known: &[&str] = match rule["forwardOriginalToken"] == false {
            true => &["issuer", "forwardOriginalToken"],
            false => &["issuer"],
        };
        let idle = [
            "audiences",
            "jwksUri",
            "jwks_uri",
            "jwks",
            "fromHeaders",
            "fromParams",
            "fromCookies",
            "outputPayloadToHeader",
            "outputClaimToHeaders",
            "forwardOriginalToken",
            "timeout",
        ];
        only(rule, &at, known, &idle, &mut problems);
    }
    problems
}
