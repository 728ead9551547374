//! Static types, and whether one may stand where another is wanted (cel-go `checker/types.go`).
//!
//! Guarantee: work is bounded whatever the types are. Where the bound is met, everything is taken for `dyn`, which lets
//! an expression pass.

use std::{collections::BTreeMap, fmt, sync::Arc};

/// A declared type with what may be in it, for estimates (apiserver `pkg/cel/types.go`).
#[derive(Debug, Clone)]
pub struct Decl {
    pub form: Form,
    /// Elements of lists and maps, bytes of texts, at most; 0 for what has no elements.
    pub most: u64,
    /// The least bytes that a value takes in JSON.
    pub least_bytes: u64,
}

#[derive(Debug, Clone)]
pub enum Form {
    Scalar(Type),
    List(Arc<Decl>),
    /// Keys are texts.
    Map(Arc<Decl>),
    Object(BTreeMap<Box<str>, Arc<Decl>>),
}

impl Decl {
    pub fn scalar(kind: Type, most: u64, least_bytes: u64) -> Arc<Self> {
        Arc::new(Self { form: Form::Scalar(kind), most, least_bytes })
    }

    pub fn text() -> Arc<Self> {
        Self::scalar(Type::String, 0, 2)
    }

    pub fn list(item: Arc<Self>, most: u64) -> Arc<Self> {
        Arc::new(Self { form: Form::List(item), most, least_bytes: 2 })
    }

    pub fn map(item: Arc<Self>, most: u64) -> Arc<Self> {
        Arc::new(Self { form: Form::Map(item), most, least_bytes: 2 })
    }

    pub fn object(fields: impl IntoIterator<Item = (&'static str, Arc<Self>)>) -> Arc<Self> {
        let fields = fields.into_iter().map(|(name, field)| (name.into(), field)).collect();
        Arc::new(Self { form: Form::Object(fields), most: 0, least_bytes: 2 })
    }

    /// As a type; `name` is what errors call an object of it.
    pub fn named(self: &Arc<Self>, name: &str) -> Type {
        match &self.form {
            Form::Scalar(kind) => kind.clone(),
            Form::List(item) => Type::list(item.named(&format!("{name}.@idx"))),
            Form::Map(item) => Type::map(Type::String, item.named(&format!("{name}.@elem"))),
            Form::Object(_) => Type::Object(self.clone(), name.into()),
        }
    }
}

/// The type of a field.
pub fn field(decl: &Decl, owner: &str, name: &str) -> Option<Type> {
    let Form::Object(fields) = &decl.form else { return None };
    let own = fields.get(name).or_else(|| {
        // Upstream spells reserved words `__namespace__`; the grammar also takes the plain word after a dot.
        fields.get(format!("__{name}__").as_str())
    })?;
    Some(own.named(&format!("{owner}.{name}")))
}

#[derive(Debug, Clone)]
pub enum Type {
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    /// What `type()` yields.
    Of(Arc<Type>),
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Optional(Arc<Type>),
    /// Not known yet.
    Param(usize),
    /// One of a library's own.
    Library(&'static str),
    /// A message whose fields are not looked into: `Object`, `JSONPatch`.
    Message(Arc<str>),
    Object(Arc<Decl>, Arc<str>),
}

impl Type {
    pub fn list(item: Type) -> Self {
        Self::List(Arc::new(item))
    }

    pub fn map(key: Type, value: Type) -> Self {
        Self::Map(Arc::new(key), Arc::new(value))
    }

    pub fn optional(held: Type) -> Self {
        Self::Optional(Arc::new(held))
    }

    /// Scalars have one size.
    pub fn is_scalar(&self) -> bool {
        match self {
            Self::Bool | Self::Double | Self::Duration | Self::Int | Self::Timestamp | Self::Uint => true,
            Self::Optional(held) => held.is_scalar(),
            _ => false,
        }
    }

    /// Whether an object has no value of its own for null to be compared with.
    fn takes_null(&self) -> bool {
        matches!(
            self,
            Self::Null
                | Self::Object(..)
                | Self::Message(_)
                | Self::Library(_)
                | Self::Optional(_)
                | Self::Duration
                | Self::Timestamp
        )
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Duration => f.write_str("duration"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Of(of) => write!(f, "type({of})"),
            Self::List(item) => write!(f, "list({item})"),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Optional(held) => write!(f, "optional_type({held})"),
            Self::Param(n) => write!(f, "_var{n}"),
            Self::Library(name) => f.write_str(name),
            Self::Message(name) | Self::Object(_, name) => f.write_str(name),
        }
    }
}

/// Types of more parts than this are taken for `dyn`; those of real rules have less than ten.
const PARTS: usize = 64;
/// Comparing types may take this many steps for a whole expression.
const FUEL: u32 = 400_000;

/// What is known of the parameters so far.
#[derive(Debug)]
pub struct Solver {
    found: Vec<Option<Type>>,
    /// What was known before, newest last.
    trail: Vec<(usize, Option<Type>)>,
    fuel: u32,
}

impl Default for Solver {
    fn default() -> Self {
        Self { found: Vec::new(), trail: Vec::new(), fuel: FUEL }
    }
}

impl Solver {
    pub fn fresh(&mut self) -> Type {
        self.found.push(None);
        Type::Param(self.found.len() - 1)
    }

    /// False once the bound was met: nothing said from then on is sure.
    pub fn is_sure(&self) -> bool {
        self.fuel > 0
    }

    fn burn(&mut self) -> bool {
        self.fuel = self.fuel.saturating_sub(1);
        self.fuel > 0
    }

    /// With parameters put in as far as they are known; `close` makes `dyn` of the others.
    pub fn resolve(&mut self, kind: &Type, close: bool) -> Type {
        let mut parts = PARTS;
        self.substitute(kind, close, &mut parts).unwrap_or(Type::Dyn)
    }

    /// None where it has too many parts.
    fn substitute(&mut self, kind: &Type, close: bool, parts: &mut usize) -> Option<Type> {
        *parts = parts.checked_sub(1)?;
        if !self.burn() {
            return None;
        }
        Some(match kind {
            Type::Param(n) => match self.found.get(*n).cloned().flatten() {
                Some(found) => self.substitute(&found, close, parts)?,
                None if close => Type::Dyn,
                None => kind.clone(),
            },
            Type::List(item) => Type::list(self.substitute(item, close, parts)?),
            Type::Map(key, value) => {
                Type::map(self.substitute(key, close, parts)?, self.substitute(value, close, parts)?)
            }
            Type::Optional(held) => Type::optional(self.substitute(held, close, parts)?),
            Type::Of(of) => Type::Of(Arc::new(self.substitute(of, close, parts)?)),
            other => other.clone(),
        })
    }

    fn set(&mut self, parameter: usize, kind: Type) {
        let before = self.found[parameter].replace(kind);
        self.trail.push((parameter, before));
    }

    /// Whether each given type may stand where the wanted one is; parameters learn from it only if all may.
    pub fn assignable(&mut self, given: &[Type], wanted: &[Type]) -> bool {
        let mark = self.trail.len();
        let fits = given.len() == wanted.len() && given.iter().zip(wanted).all(|(g, w)| self.fits(g, w));
        if !fits {
            for (parameter, before) in self.trail.drain(mark..).rev() {
                self.found[parameter] = before;
            }
        }
        fits
    }

    fn fits(&mut self, a: &Type, b: &Type) -> bool {
        if !self.burn() {
            return true;
        }
        if let Type::Param(n) = b {
            match self.learn(a, *n) {
                (true, _) => return true,
                (false, true) => return false,
                _ => {}
            }
        }
        match (a, b) {
            (Type::Param(n), _) => self.learn(b, *n).0,
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            (Type::Null, other) | (other, Type::Null) => other.takes_null(),
            (Type::Of(_), Type::Of(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.fits(a, b),
            (Type::Map(ka, va), Type::Map(kb, vb)) => self.fits(ka, kb) && self.fits(va, vb),
            _ => same(a, b),
        }
    }

    /// Whether parameter `n` may be `kind`; and whether it was known.
    fn learn(&mut self, kind: &Type, n: usize) -> (bool, bool) {
        if matches!(kind, Type::Param(m) if *m == n) {
            return (true, true);
        }
        match self.found.get(n).cloned().flatten() {
            Some(known) => {
                if matches!((kind, &known), (Type::Param(a), Type::Param(b)) if a == b) {
                    return (true, true);
                }
                if !self.fits(kind, &known) {
                    return (false, true);
                }
                let general = if is_wider(kind, &known) { kind.clone() } else { known };
                if !self.mentions(&general, n) {
                    self.set(n, general);
                }
                (true, true)
            }
            None if self.mentions(kind, n) => (false, false),
            None => {
                self.set(n, kind.clone());
                (true, false)
            }
        }
    }

    fn mentions(&mut self, kind: &Type, n: usize) -> bool {
        if !self.burn() {
            return false;
        }
        match kind {
            Type::Param(m) if *m == n => true,
            Type::Param(m) => match self.found.get(*m).cloned().flatten() {
                Some(found) => self.mentions(&found, n),
                None => false,
            },
            Type::List(inner) | Type::Optional(inner) | Type::Of(inner) => self.mentions(inner, n),
            Type::Map(key, value) => self.mentions(key, n) || self.mentions(value, n),
            _ => false,
        }
    }

    /// The type of what is one or the other; none where they are strangers.
    pub fn join(&mut self, a: &Type, b: &Type) -> Option<Type> {
        let fits = self.assignable(std::slice::from_ref(a), std::slice::from_ref(b));
        fits.then(|| if is_wider(a, b) { a.clone() } else { b.clone() })
    }
}

/// Whether they are one type, parameters by name.
pub fn same(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Object(x, named), Type::Object(y, other)) => Arc::ptr_eq(x, y) || named == other,
        (Type::Message(a), Type::Message(b)) => a == b,
        (Type::Library(a), Type::Library(b)) => a == b,
        (Type::Param(a), Type::Param(b)) => a == b,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) | (Type::Of(a), Type::Of(b)) => {
            same(a, b)
        }
        (Type::Map(ka, va), Type::Map(kb, vb)) => same(ka, kb) && same(va, vb),
        _ => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

/// Whether `a` takes all that `b` takes.
fn is_wider(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Dyn | Type::Param(_), _) => true,
        (_, Type::Dyn | Type::Param(_)) => false,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => is_wider(a, b),
        (Type::Map(ka, va), Type::Map(kb, vb)) => is_wider(ka, kb) && is_wider(va, vb),
        (Type::Of(_), Type::Of(_)) => true,
        _ => same(a, b),
    }
}
