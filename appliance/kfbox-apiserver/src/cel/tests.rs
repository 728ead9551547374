use super::*;
use serde_json::{Value, json};

fn scope<'a>() -> Scope<'a> {
    Scope { variables: &["self", "big"], ..Scope::default() }
}

fn run(source: &str, this: Value) -> Result<Cel, CelError> {
    let expression = Expression::compile(source, &scope()).unwrap_or_else(|error| panic!("{source}: {error}"));
    expression.evaluate(&[("self", from_json(&this))][..]).result
}

/// Why the expression does not hold, if it does not.
fn doubt(source: &str) -> Option<String> {
    let this = json!({
        "name": "web", "n": 3, "labels": {"app": "web", "tier": "front"}, "list": [3, 1, 2], "nothing": null,
        "words": ["a", "b", "c"], "nested": {"deep": {"x": 1.5}},
    });
    let outcome = on_deep_stack(|| {
        let expression = Expression::compile(source, &scope())?;
        match expression.evaluate(&[("self", from_json(&this))][..]).result {
            Ok(Cel::Bool(true)) => Ok(()),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    });
    match outcome {
        Some(Ok(())) => None,
        Some(Err(why)) => Some(format!("{source}: {why}")),
        None => Some(format!("{source}: a panic")),
    }
}

fn fails(source: &str, why: &str) {
    match run(source, json!({"n": 1, "list": [1]})) {
        Err(error) => assert_eq!(error.to_string(), why, "{source}"),
        Ok(value) => panic!("{source} is {value:?}"),
    }
}

#[test]
fn the_language_and_its_libraries() {
    let doubts: Vec<String> = [
        "self.n == 3 && self.n < 4.5 && 2u < self.n && self.n in self.list",
        "has(self.name) && !has(self.absent) && self.labels['app'] == 'web'",
        "self.nested.deep.x == 1.5 && self.?nested.?deep.?y.orValue(7) == 7 && self[?'name'].hasValue()",
        "self.list.all(x, x > 0) && self.list.exists(x, x == 2) && self.list.exists_one(x, x == 1)",
        "self.list.map(x, x * 2) == [6, 2, 4] && self.list.filter(x, x > 1) == [3, 2] && self.list.map(x, x > 1, x) == [3, 2]",
        "self.labels.all(k, k.size() > 2) && self.labels.map(k, k) == ['app', 'tier']",
        "self.labels.all(k, v, k != v) && self.words.exists(i, w, i == 1 && w == 'b')",
        "self.words.transformList(i, w, i > 0, w + string(i)) == ['b1', 'c2']",
        "self.labels.transformMap(k, v, v + '!')['app'] == 'web!' && self.words.transformMapEntry(i, w, {w: i})['c'] == 2",
        "optional.of(self.name).optMap(n, n + '1').orValue('') == 'web1' && self.?absent.optMap(n, n).hasValue() == false",
        "self.list.sortBy(x, -x) == [3, 2, 1] && [1, 2].isSorted() && self.list.sum() == 6 && self.list.max() == 3",
        "self.words.indexOf('c') == 2 && self.words.join('-') == 'a-b-c' && 'a-b'.split('-') == ['a', 'b']",
        "'äö'.size() == 2 && 'Hello'.lowerAscii() == 'hello' && 'abc'.substring(1) == 'bc' && 'aaa'.replace('a', 'b', 2) == 'bba'",
        "'web-12'.find('[0-9]+') == '12' && 'a1b2'.findAll('[0-9]') == ['1', '2'] && 'a1b2'.findAll('[0-9]', 1) == ['1']",
        "'abc'.matches('^a.c$') && !'abc'.matches('^b') && 'x=%d %s'.format([3, 'y']) == 'x=3 y'",
        "url('https://example.com:80/a?b=c').getHostname() == 'example.com' && isURL('https://e.com') && !isURL('../x')",
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('500m').add(quantity('1')).compareTo(quantity('1.5')) == 0",
        "quantity('2k') == quantity('2000') && isQuantity('3Mi') && !isQuantity('three')",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && ip('127.0.0.1').isLoopback() && ip.isCanonical('::1')",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').prefixLength() == 8 && !isCIDR('10.0.0.0')",
        "format.dns1123Label().validate('ok') == optional.none() && format.dns1123Label().validate('Not_ok').hasValue()",
        "format.named('dns1123Label').hasValue() && semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('1.0.0')",
        "sets.contains([1, 2, 3], [2]) && sets.equivalent([1, 2], [2, 1]) && !sets.intersects([1], [2])",
        "duration('90s') == duration('1m30s') && timestamp('2024-01-02T03:04:05Z').getFullYear() == 2024",
        "timestamp('2024-01-02T00:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('24h')",
        "type(self.n) == int && type('x') == string && type(null) == null_type && type([]) == list && type({}) == map",
        "[1, 2] + [3] == [1, 2, 3] && {'a': 1}.a == 1 && [?self.?absent, 1].size() == 1 && 'a' + 'b' == 'ab' && b'a' + b'b' == b'ab'",
        "self.nothing == null && (self.n > 5 ? 'big' : 'small') == 'small' && !(1 == 'x') && int('7') == 7 && bool('true')",
        "[[1], [2, 3]].flatten() == [1, 2, 3] && [1, 1, 2].distinct() == [1, 2] && lists.range(3) == [0, 1, 2]",
        // The side that decides makes up for an error of the other.
        "(self.absent == 1 || true) && !(self.absent == 1 && false) && self.list.exists(x, 6 / (x - 3) == -3)",
    ]
    .into_iter()
    .filter_map(doubt)
    .collect();
    assert!(doubts.is_empty(), "{}", doubts.join("\n"));
}

#[test]
fn errors_are_upstreams() {
    fails("self.absent == 1", "no such key: absent");
    fails("self.list[3] == 1", "index out of bounds: 3");
    fails("self.n / 0 == 1", "division by zero");
    fails("9223372036854775807 + self.n == 0", "integer overflow");
    fails("self.n + 'x' == 'x'", "no such overload");
    fails("self.list.all(x, x.y)", "no such overload");
    fails("optional.none().value() == 1", "optional.none() dereference");
    for (source, why) in [
        ("selff.x", "undeclared reference to 'selff' (in container '')"),
        ("self.frobnicate()", "undeclared reference to 'frobnicate' (in container '')"),
        ("x.all(x, true)", "undeclared reference to 'x' (in container '')"),
        ("Object{a: 1}", "undeclared reference to 'Object' (in container '')"),
    ] {
        assert_eq!(Expression::compile(source, &scope()).unwrap_err(), why, "{source}");
    }
    assert!(Expression::compile("self.matches('(')", &scope()).unwrap_err().starts_with("error parsing regexp"));
    assert!(Expression::compile("self ===", &scope()).is_err());
}

/// Each of these would hold a thread for minutes, or all memory, if it ran to its end.
#[test]
fn no_expression_holds_the_server() {
    let list: Vec<u64> = (0..10_000).collect();
    let long = "a".repeat(1 << 20);
    let this = json!({"list": list, "long": long, "words": vec!["word"; 10_000]});
    let variables = [("self", from_json(&this))];
    for source in [
        "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c >= 0)))",
        "self.list.exists(a, self.list.exists(b, a + b < 0))",
        // No error of the meter is made up for.
        "self.list.all(a, self.list.all(b, true)) || true",
        "self.list.map(a, self.list.map(b, self.list)).size() > 0",
        "self.list.all(a, self.list == self.list)",
        "self.list.all(a, self.long.contains('b') || true)",
        "self.long.replace('a', self.long).size() > 0",
        "self.long.replace('', self.long).size() > 0",
        "self.list.all(a, self.long.matches('^(a|b)*$'))",
        "self.words.all(w, self.words.join(self.long) != '')",
        "lists.range(1000000000).size() > 0",
        "sets.contains(self.list, self.list)",
        "self.list.all(i, x, self.list.all(j, y, x + y >= 0))",
        "self.list.transformList(i, x, self.list.distinct()).size() > 0",
        "self.list.all(a, self.list.sortBy(x, -x).size() > 0)",
        "self.list.all(a, (self.long + self.long).size() > 0)",
        "self.words.all(w, '%s%s%s'.format([self.long, self.long, self.long]) != '')",
    ] {
        let started = std::time::Instant::now();
        let expression = Expression::compile(source, &scope()).unwrap();
        let evaluation = expression.evaluate(&variables[..]);
        assert_eq!(evaluation.result, Err(CelError::Cost), "{source}");
        // Far above what it takes without optimisation, far below what it would take without a meter.
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{source}: {:?}", started.elapsed());
    }
    for source in ["'%.1000000000f'.format([1.0]) != ''", "quantity('1e2000000000').isInteger()"] {
        let expression = Expression::compile(source, &scope()).unwrap();
        assert!(matches!(expression.evaluate(&variables[..]).result, Err(CelError::Failed(_))), "{source}");
    }
}

#[test]
fn the_same_evaluation_costs_the_same() {
    let expression = Expression::compile("self.list.all(x, x > 0) && self.m.all(k, self.m[k] == k)", &scope()).unwrap();
    let this = json!({"list": [1, 2, 3], "m": {"a": "a", "b": "b", "c": "c"}});
    let costs: std::collections::BTreeSet<u64> =
        (0..8).map(|_| expression.evaluate(&[("self", from_json(&this))][..]).cost).collect();
    assert_eq!(costs.len(), 1);
}

mod random {
    use super::*;
    use proptest::prelude::*;

    fn source() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("self".to_owned()),
            Just("self.list".to_owned()),
            Just("self.m".to_owned()),
            Just("'text'".to_owned()),
            Just("1".to_owned()),
            Just("2.5".to_owned()),
            Just("null".to_owned()),
            Just("[]".to_owned()),
            Just("true".to_owned()),
            Just("'-9e99'".to_owned()),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            let name = prop::sample::select(super::super::calls::names());
            prop_oneof![
                (
                    inner.clone(),
                    inner.clone(),
                    prop::sample::select(vec!["+", "-", "*", "/", "%", "==", "<", "in", "&&", "||"])
                )
                    .prop_map(|(a, b, op)| format!("({a} {op} {b})")),
                (inner.clone(), name.clone(), prop::collection::vec(inner.clone(), 0..3))
                    .prop_map(|(a, name, args)| format!("{a}.{name}({})", args.join(", "))),
                (name, prop::collection::vec(inner.clone(), 0..3))
                    .prop_map(|(name, args)| format!("{name}({})", args.join(", "))),
                (
                    inner.clone(),
                    inner.clone(),
                    prop::sample::select(vec!["all", "exists", "map", "filter", "exists_one"])
                )
                    .prop_map(|(a, b, m)| format!("{a}.{m}(v, {b} == v)")),
                (inner.clone(), inner).prop_map(|(a, b)| format!("{a}[?{b}].orValue({{'k': [{b}]}})")),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        /// Nothing that can be written panics or runs away, whatever its types.
        #[test]
        fn expressions_end_in_a_value_or_an_error(source in source()) {
            let variables = [("self", from_json(&json!({"list": [1, "a", null, [2]], "m": {"k": 1.5, "text": {}}})))];
            let outcome = on_deep_stack(|| {
                Expression::compile(&source, &scope()).map(|expression| expression.evaluate(&variables[..]).cost)
            });
            prop_assert!(outcome.is_some(), "{source} panicked");
        }

        /// Types and costs of anything are found without a panic, and in bounded time: a type with more parts than any
        /// real one is not followed.
        #[test]
        fn checking_ends(source in source(), rounds in 0_usize..30) {
            let declared = check::Decl::object([
                ("list", check::Decl::list(check::Decl::text(), 10)),
                ("m", check::Decl::map(check::Decl::scalar(check::Type::Dyn, 5, 2), 10)),
            ]);
            let this = declared.named("selfType");
            let names = check::Names {
                variables: vec![("self".into(), this), ("big".into(), check::Type::Dyn)], composed: Vec::new(),
            };
            let grown = (0..rounds).fold(format!("[{source}]"), |inner, _| format!("{inner}.map(x, {{x: [x, x]}})"));
            for source in [&source, &grown] {
                let outcome = on_deep_stack(|| {
                    Expression::compile(source, &scope()).map(|e| {
                        let first = e.check_sized(&names, Some(&declared)).map(|checked| checked.most());
                        (first.clone(), first == e.check_sized(&names, Some(&declared)).map(|checked| checked.most()))
                    })
                });
                prop_assert!(outcome.is_some(), "{source} panicked");
                if let Some(Ok((_, same))) = outcome {
                    prop_assert!(same, "{source} is judged in two ways");
                }
            }
        }
    }
}
