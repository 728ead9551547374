//! Upstream's answers: figures and messages are those of `apiextensions-apiserver/pkg/apiserver/schema/cel`.

use crate::schema::from_crd;
use serde_json::{Value, json};

/// What is wrong with a rule on a value of this schema, and at which field.
fn errors(schema: &Value, rule: Value) -> Vec<String> {
    let mut schema = schema.clone();
    schema["x-kubernetes-validations"] = json!([rule]);
    match from_crd(&json!({"type": "object", "properties": {"f": schema}})) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

fn refusal(schema: &Value, rule: &str) -> Option<String> {
    errors(schema, json!({"rule": rule})).into_iter().next()
}

fn fields() -> Value {
    let text = || json!({"type": "string", "maxLength": 100});
    json!({"type": "object", "properties": {
        "s": text(), "t": text(), "n": {"type": "integer"}, "d": {"type": "number"}, "b": {"type": "boolean"},
        "any": {"x-kubernetes-int-or-string": true}, "bytes": {"type": "string", "format": "byte", "maxLength": 10},
        "when": {"type": "string", "format": "date-time"}, "day": {"type": "string", "format": "date"},
        "long": {"type": "string", "format": "duration"},
        "list": {"type": "array", "maxItems": 10, "items": text()},
        "ints": {"type": "array", "maxItems": 10, "items": {"type": "integer"}},
        "map": {"type": "object", "maxProperties": 10, "additionalProperties": {"type": "integer"}},
        "o": {"type": "object", "properties": {"x": {"type": "integer"}, "dash-dot.x": {"type": "string"}}},
        "p": {"type": "object", "properties": {"x": {"type": "integer"}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "hidden": {"x-kubernetes-preserve-unknown-fields": true},
        "res": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        "objects": {"type": "array", "maxItems": 5, "items": {"type": "object", "properties": {"k": text(), "v": {"type": "integer"}}}},
    }})
}

#[test]
fn what_fits_is_accepted() {
    let refused: Vec<String> = [
        "self.s == 'x' && self.n == 1 && self.d == 1.0 && self.b && self.n < 2.5 && self.d > 1",
        "self.any == 1 || self.any == '10%' || type(self.any) == int || self.any.matches('x') || self.any > 3",
        "self.any == self.n && string(self.any) == 'x' && int(self.any) == 3 && isQuantity(self.any)",
        "self.when > timestamp('2020-01-01T00:00:00Z') && self.day == timestamp('2020-01-01T00:00:00Z')",
        "self.when - self.day < duration('24h') && self.long + duration('1h2m3s4ms') > duration('1s')",
        "self.bytes == b'abc' && self.bytes.size() == 3 && string(self.bytes) == 'abc' && bytes(self.s) == self.bytes",
        "self.list.all(x, x.startsWith('a')) && self.list.map(x, x.size()).sum() > 3 && self.list[0] == self.s",
        "self.list.filter(x, x != '').size() == size(self.list) && self.list.exists_one(x, x == 'y') && 'a' in self.list",
        "self.map.all(k, self.map[k] > 3) && self.map.x == 1 && 'k' in self.map && self.map.size() < 3",
        "self.map.all(k, v, k.size() > v) && self.list.transformList(i, w, i > 0, w + string(i)) == ['b1']",
        "self.map.transformMap(k, v, string(v))['x'] == '1' && self.list.transformMapEntry(i, w, {w: i})['c'] == 2",
        "self.o.x > 1 && has(self.o.x) && self.o.dash__dash__dot__dot__x == 'y' && self.o == oldSelf.o",
        "has(self.free) && self.free != null && self.res.metadata.name == 'x' && self.res.kind == 'Pod'",
        "self.objects.exists(o, o.k == self.s && o.v in self.ints) && self.objects == oldSelf.objects",
        "self.?s.orValue('x') == 'y' && self.?o.?x.hasValue() && self.map[?'x'].orValue(3) == 3 && self.?o.x.value() == 1",
        "self.?s.optMap(x, x.size()).orValue(0) > 0 && optional.of(self.n).optFlatMap(x, optional.of(x + 1)).hasValue()",
        "[1, 2] == self.ints && [] == self.ints && self.ints + [1] != [] && {} == self.map && {'a': 1}.a == 1",
        "[self.s, 'x'].exists(x, x == 'y') && [[1], []].size() == 2 && [?self.?s].size() == 1 && {?'a': self.?s}.size() == 0",
        "(self.n > 3 ? [] : self.list).size() == 0 && (self.b ? self.s : 'x') == 'y' && dyn(self.s) == 1",
        "'%s has %d'.format([self.s, self.n]) == '' && self.list.join(',').split(',', 2) == self.list",
        "url(self.s).getHost() == 'x' && isURL(self.s) && cidr(self.s).containsIP(ip(self.t)) && cidr(self.s).ip().family() == 4",
        "quantity(self.s).add(quantity('1')).add(3).compareTo(quantity('2')) == 0 && quantity(self.s) == quantity('1')",
        "semver(self.s).isLessThan(semver('1.0.0')) && semver(self.s, true).major() == 1 && ip.isCanonical(self.s)",
        "!format.dns1123Label().validate(self.s).hasValue() && format.named('uuid').value().validate(self.s).orValue([]) == []",
        "type(self.s) == string && type(self.when) == google.protobuf.Timestamp && type(null) == null_type && type([]) == list",
        "self.ints.isSorted() && self.ints.max() == 3 && self.list.min() == '' && self.ints.indexOf(3) == 0",
        "self.objects.sortBy(o, o.v)[0].k == '' && self.ints.sort() == [1] && [[1]].flatten() == [1] && lists.range(3) == [0]",
        "sets.contains(self.list, ['a']) && self.list.distinct() == self.list && self.list.slice(0, 1) == ['x'] && self.s.matches('^[a-z]+$')",
        "self.s.lowerAscii().replace('a', 'b').substring(1, 2).trim().find('[0-9]').findAll('x') == [] && self.s.charAt(0) == 'a'",
        "null == null && 1 in [1, 2] && !(2 in {1: 'x'}) && [1, 2].map(x, [x]).all(x, x[0] > 0) && -self.n < 0 && 5 % 2 == 1",
        "self.ints.all(i, i > 0 && self.list.exists(s, s.size() == i)) && self.when.getHours('UTC') == 1 && self.long.getHours() == 2",
    ]
    .iter()
    .filter_map(|rule| refusal(&fields(), rule).map(|why| format!("{rule}: {why}")))
    .collect();
    assert!(refused.is_empty(), "{}", refused.join("\n\n"));
}

#[test]
fn what_does_not_fit_is_refused_in_upstreams_words() {
    for (rule, at, why) in [
        ("self.s == 1", 8, "found no matching overload for '_==_' applied to '(string, int)'"),
        ("self.n == 1u", 8, "found no matching overload for '_==_' applied to '(int, uint)'"),
        ("self.s == null", 8, "found no matching overload for '_==_' applied to '(string, null)'"),
        ("self.s + self.n == ''", 8, "found no matching overload for '_+_' applied to '(string, int)'"),
        ("self.d % 2.0 == 1.0", 8, "found no matching overload for '_%_' applied to '(double, double)'"),
        ("self.list > 3", 11, "found no matching overload for '_>_' applied to '(list(string), int)'"),
        ("self.absent == 1", 5, "undefined field 'absent'"),
        ("has(self.absent)", 4, "undefined field 'absent'"),
        ("self.o.y == 1", 7, "undefined field 'y'"),
        ("self.free.x == 1", 10, "undefined field 'x'"),
        ("self.hidden == 1", 5, "undefined field 'hidden'"),
        ("self.objects.all(o, o.z > 1)", 22, "undefined field 'z'"),
        ("self.res.spec.x == 1", 9, "undefined field 'spec'"),
        ("self.n.x == 1", 7, "type 'int' does not support field selection"),
        (
            "self.n.all(x, x > 1)",
            5,
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("size(self.n) == 1", 5, "found no matching overload for 'size' applied to '(int)'"),
        ("self.n.startsWith('x')", 18, "found no matching overload for 'startsWith' applied to 'int.(string)'"),
        ("self.s.startsWith(1)", 18, "found no matching overload for 'startsWith' applied to 'string.(int)'"),
        ("self.list.all(x, x)", 18, "expected type 'bool' but found 'string'"),
        ("self.list.exists(x, x > 1)", 23, "found no matching overload for '_>_' applied to '(string, int)'"),
        ("self.s && true", 5, "expected type 'bool' but found 'string'"),
        ("!self.s", 1, "found no matching overload for '!_' applied to '(string)'"),
        ("self.b ? 1 : 'x'", 8, "found no matching overload for '_?_:_' applied to '(bool, int, string)'"),
        ("1 in self.list", 3, "found no matching overload for '@in' applied to '(int, list(string))'"),
        ("self.list['x'] == ''", 10, "found no matching overload for '_[_]' applied to '(list(string), string)'"),
        ("self.map[1] == 1", 9, "found no matching overload for '_[_]' applied to '(map(string, int), int)'"),
        ("[1, 'x'].size() == 2", 5, "expected type 'int' but found 'string'"),
        ("{'a': 1, 'b': true}.size() == 2", 15, "expected type 'int' but found 'bool'"),
        ("self.when == 'x'", 11, "found no matching overload for '_==_' applied to '(timestamp, string)'"),
        ("self.s.matches(self.n)", 15, "found no matching overload for 'matches' applied to 'string.(int)'"),
        ("quantity(self.s) > 1", 18, "found no matching overload for '_>_' applied to '(kubernetes.Quantity, int)'"),
        (
            "self.?s.orValue(1) == 1",
            16,
            "found no matching overload for 'orValue' applied to 'optional_type(string).(int)'",
        ),
        ("duration('1 day') > duration('1h')", 10, "invalid duration argument"),
        ("timestamp('today') > timestamp(0)", 11, "invalid timestamp argument"),
        ("nobody.x == 1", 1, "undeclared reference to 'nobody' (in container '')"),
        ("self.s.frobnicate()", 18, "undeclared reference to 'frobnicate' (in container '')"),
        ("self.b &&\n self.s == 1", 9, "found no matching overload for '_==_' applied to '(string, int)'"),
    ] {
        let found = refusal(&fields(), rule).unwrap_or_else(|| panic!("{rule} is accepted"));
        let line = 1 + rule.matches('\n').count();
        let wanted = format!("compilation failed: ERROR: <input>:{line}:{at}: {why}\n | ");
        assert!(found.contains(&wanted), "{rule}: {found}\nwanted {wanted}");
        assert!(found.starts_with("properties[f].x-kubernetes-validations[0].rule: Invalid value: "), "{found}");
    }
    let both = refusal(&fields(), "self.s == 1 || self.absent == 2").unwrap();
    let wanted = "compilation failed: ERROR: <input>:1:8: found no matching overload for '_==_' applied to '(string, int)'\n \
        | self.s == 1 || self.absent == 2\n | .......^\nERROR: <input>:1:20: undefined field 'absent'\n \
        | self.s == 1 || self.absent == 2\n | ...................^";
    assert!(both.ends_with(wanted), "{both}");
}

#[test]
fn results_have_their_type() {
    for rule in ["42", "self.s", "self.any", "self.?b", "[self.b]"] {
        let found = refusal(&fields(), rule).unwrap_or_else(|| panic!("{rule} is accepted"));
        assert!(found.ends_with("cel expression must evaluate to a bool"), "{rule}: {found}");
    }
    let message = |expression: &str| errors(&fields(), json!({"rule": "self.b", "messageExpression": expression}));
    assert_eq!(message("'n is ' + string(self.n)"), Vec::<String>::new());
    assert!(message("self.n")[0].ends_with("messageExpression must evaluate to a string"));
    let found = message("self.s + 1");
    assert!(found[0].contains("[0].messageExpression: Invalid value: "), "{found:?}");
    assert!(found[0].contains("messageExpression compilation failed: ERROR: <input>:1:8: found no matching overload"));
}

#[test]
fn what_was_before_may_be_optional() {
    let number = json!({"type": "integer"});
    let optional = |rule: &str| errors(&number, json!({"rule": rule, "optionalOldSelf": true}));
    for rule in
        ["self >= oldSelf.value()", "self >= oldSelf.orValue(1)", "oldSelf.hasValue() ? self >= oldSelf.value() : true"]
    {
        assert_eq!(optional(rule), Vec::<String>::new());
    }
    assert!(optional("self >= oldSelf")[0].contains("'(int, optional_type(int))'"));
    assert!(optional("self >= oldSelf.orValue('')")[0].contains("'orValue' applied to 'optional_type(int).(string)'"));
    assert!(optional("self > 0")[0].ends_with("may not be set if oldSelf is not used in rule"));
    let items = |kind: Value| {
        let mut schema = json!({"type": "array", "maxItems": 2, "items": {"type": "object", "required": ["k"],
            "properties": {"k": {"type": "string"}, "v": {"type": "integer",
                "x-kubernetes-validations": [{"rule": "self >= oldSelf"}]}}}});
        schema["x-kubernetes-list-type"] = kind.clone();
        if kind == "map" {
            schema["x-kubernetes-list-map-keys"] = json!(["k"]);
        }
        errors(&schema, json!({"rule": "true"}))
    };
    assert_eq!(items(json!("map")), Vec::<String>::new());
    let found = items(json!("atomic"));
    let why = "oldSelf cannot be used on the uncorrelatable portion of the schema within properties[f]";
    assert!(found[0].ends_with(why), "{found:?}");
}

/// The cost that upstream's own tests state for a rule on a schema.
#[test]
fn costs_are_upstreams() {
    let item = |kind: &str| match kind {
        "duration" | "date" | "date-time" => json!({"type": "string", "format": kind}),
        "int-or-string" => json!({"x-kubernetes-int-or-string": true}),
        other => json!({"type": other}),
    };
    let bound = |mut schema: Value, name: &str, most: Option<u64>| {
        if let Some(most) = most {
            schema[name] = json!(most);
        }
        schema
    };
    let list = |kind: &str, most| bound(json!({"type": "array", "items": item(kind)}), "maxItems", most);
    let map =
        |kind: &str, most| bound(json!({"type": "object", "additionalProperties": item(kind)}), "maxProperties", most);
    let text = |most| bound(json!({"type": "string"}), "maxLength", most);
    let words = |most| bound(json!({"type": "array", "items": text(most)}), "maxItems", most);
    let mut wrong = Vec::new();
    let mut costs = |schema: Value, rule: &str, wanted: u64| {
        let found = cost(&schema, rule);
        if found != wanted {
            wrong.push(format!("{rule} on {schema}: {found} for {wanted}"));
        }
    };
    for (kind, free, most, limited) in [
        ("number", 4_718_591, 10, 32),
        ("string", 3_145_727, 20, 62),
        ("boolean", 1_887_437, 5, 17),
        ("int-or-string", 4_718_591, 10, 32),
        ("duration", 2_359_295, 5, 17),
        ("date", 725_936, 15, 47),
        ("date-time", 428_963, 25, 77),
    ] {
        costs(list(kind, None), "self.all(x, true)", free);
        costs(list(kind, Some(most)), "self.all(x, true)", limited);
    }
    for (kind, free, most, limited) in [
        ("number", 1_348_169, 10, 32),
        ("string", 1_179_647, 3, 11),
        ("boolean", 943_718, 100, 302),
        ("int-or-string", 1_348_169, 15, 47),
        ("duration", 1_048_577, 5, 17),
        ("date", 524_288, 10, 32),
        ("date-time", 349_526, 25, 77),
    ] {
        costs(map(kind, None), "self.all(x, true)", free);
        costs(map(kind, Some(most)), "self.all(x, true)", limited);
    }
    for (rule, free, most, limited) in [
        ("self.contains('test')", 314_574, 10, 5),
        ("self.startsWith('test')", 2, 15, 2),
        ("self.endsWith('test')", 2, 30, 2),
        ("size(self + \"hello\") > size(\"hello\")", 314_578, 4, 7),
        ("self.matches(\"x\")", 314_574, 50, 22),
        ("\"\".matches(\"(((((((((())))))))))[0-9]\")", 7, 10, 7),
        ("self.matches(\"\")", 1, 100, 1),
        ("self.find('[0-9]+') == ''", 629_147, 10, 11),
        ("self.lowerAscii() == 'lower!'", 314_575, 10, 6),
        ("self == \"x\"", 2, 0, 1),
    ] {
        costs(text(None), rule, free);
        costs(text(Some(most)), rule, limited);
    }
    for (rule, free, most, limited) in
        [("self.join(' ') == 'aa bb'", 329_853_068_905, 10, 43), ("self.isSorted() == true", 329_854_432_052, 10, 52)]
    {
        costs(words(None), rule, free);
        costs(words(Some(most)), rule, limited);
    }
    for (schema, rule, wanted) in [
        (list("number", None), "self[1] == 0.0", 2),
        (list("string", None), "self[1] == self[1]", 314_577),
        (list("number", Some(10)), "self.all(x, self.all(y, true))", 352),
        (list("number", Some(10)), "self.all(x, self.all(y, self.all(z, true)))", 3552),
        (list("number", None), "self.all(x, x == 0.0)", 6_291_454),
        (list("number", Some(3 * 1024 * 2048)), "self.all(x, x == 0.0)", 25_165_826),
        (map("number", None), "self[\"x\"] == 0.0", 2),
        (list("int-or-string", None), "self[0] == 5", 3),
        (list("boolean", None), "self[0] == false", 2),
        (list("duration", None), "self[0].getHours() == 2", 4),
        (list("date", None), "self[2].getDayOfMonth() == 13", 4),
        (list("date-time", None), "self[2].getMinutes() == 45", 4),
        (json!({"type": "array", "items": list("number", None)}), "self[0][0] == -1.0", 3),
        (json!({"type": "array", "items": map("number", None)}), "self.all(x, x.y == 25.2)", 6_291_452),
        (json!({"type": "array", "items": map("number", None)}), "self[0].x > 2.0", 4),
        (map("integer", None), "oldSelf.size() == self.size()", 5),
        (map("date-time", None), "self[\"a\"] == self[\"b\"]", 8),
        (map("duration", None), "self[\"c\"] == self[\"d\"]", 8),
        (json!({"type": "string", "enum": ["A", "B", "C", "LongValue"]}), "self.contains('A')", 2),
        (item("int-or-string"), "isQuantity(self)", 314_574),
        (bound(item("int-or-string"), "maxLength", Some(20)), "isQuantity(self)", 9),
        (
            json!({"type": "object", "properties": {"str": text(None), "before": text(Some(2)), "after": text(Some(4))}}),
            "self.str.replace(self.before, self.after) == 'does not matter'",
            629_154,
        ),
        (
            json!({"type": "object", "properties": {"str": text(Some(4)), "before": text(Some(2)), "after": text(Some(4))}}),
            "self.str.replace(self.before, self.after) == 'does not matter'",
            12,
        ),
        (
            json!({"type": "object", "properties": {"str": text(None), "separator": text(None)}}),
            "self.str.split(self.separator) == []",
            629_160,
        ),
        (
            json!({"type": "object", "properties": {"str": text(Some(10)), "separator": text(Some(10))}}),
            "self.str.split(self.separator) == []",
            22,
        ),
    ] {
        costs(schema, rule, wanted);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn cost(schema: &Value, rule: &str) -> u64 {
    let expression = crate::cel::Expression::compile(
        rule,
        &crate::cel::Scope { variables: &["self", "oldSelf"], ..Default::default() },
    )
    .unwrap();
    let declared = crate::schema::declare_value(schema);
    let this = declared.named("selfType");
    let names =
        super::Names { variables: vec![("self".into(), this.clone()), ("oldSelf".into(), this)], composed: vec![] };
    expression.check_sized(&names, Some(&declared)).unwrap_or_else(|why| panic!("{rule}: {why}")).most()
}

#[test]
fn what_may_cost_too_much_is_refused() {
    let free = json!({"type": "array", "items": {"type": "string"}});
    let found = refusal(&free, "self.all(x, self.all(y, x == y))").unwrap();
    let wanted = "properties[f].x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of \
        more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and \
        strings are declared)";
    assert_eq!(found, wanted);
    let bounded = json!({"type": "array", "maxItems": 30, "items": {"type": "string", "maxLength": 50}});
    assert_eq!(refusal(&bounded, "self.all(x, self.all(y, x == y))"), None);
    // Upstream does not know how long the text of a text is.
    let words = json!({"type": "array", "items": {"type": "string"}});
    let found = errors(&words, json!({"rule": "true", "messageExpression": "string(self[0]) + string(self[1])"}));
    assert!(found[0].contains("[0].messageExpression: Forbidden: estimated messageExpression cost"), "{found:?}");
    assert!(found[1].contains("contributed to estimated rule cost total exceeding cost limit"), "{found:?}");
    // A rule below an array runs once for each element there may be.
    let below = |list: Value| {
        let mut list = list;
        list["items"]["x-kubernetes-validations"] = json!([{"rule": "self.contains('x')"}]);
        errors(&list, json!({"rule": "true"}))
    };
    let found = below(json!({"type": "array", "items": {"type": "string"}}));
    assert!(found[0].contains("items.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost"), "{found:?}");
    assert_eq!(below(json!({"type": "array", "maxItems": 10, "items": {"type": "string"}})), Vec::<String>::new());
    // Each for itself is within its limit, all together are not.
    let many: serde_json::Map<String, Value> = (0..40)
        .map(|n| {
            let rule = json!([{"rule": "self.all(x, true)"}]);
            (format!("f{n}"), json!({"type": "array", "items": {"type": "number"}, "x-kubernetes-validations": rule}))
        })
        .collect();
    let errors = from_crd(&json!({"type": "object", "properties": many})).unwrap_err();
    let last = errors.last().unwrap().to_string();
    assert!(
        last.contains("estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of 1.9x"),
        "{last}"
    );
    assert_eq!(errors.len(), 5, "{errors:?}");
}

/// What was accepted before stays, as long as it is not made worse.
#[test]
fn stored_rules_stay() {
    let version = |rule: &str, kind: &str, more: &str| {
        json!({"spec": {"versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
            "type": "object", "description": more,
            "properties": {"f": {"type": kind, "x-kubernetes-validations": [{"rule": rule}]}}}}}]}})
    };
    let update = |new: &Value, old: &Value| crate::schema::from_crd_update(new, Some(old)).map(|_| ());
    let ill = version("self == 1", "string", "");
    assert!(from_crd(&ill).is_err());
    update(&ill, &ill).unwrap();
    update(&version("self == 1", "string", "Other words."), &ill).unwrap();
    let errors = update(&version("self == 2", "string", ""), &ill).unwrap_err();
    assert_eq!(
        errors[0].field,
        "spec.versions[0].schema.openAPIV3Schema.properties[f].x-kubernetes-validations[0].rule"
    );
    // The rule is the same, but it fitted before.
    assert!(update(&ill, &version("self == 1", "integer", "")).is_err());
}
