//! What Kubernetes' types and fields mean. The texts come out of `k8s-openapi` when this crate is built (`build.rs`), stay
//! compressed in the program's file, and are unpacked only while a document is made: a box that nobody asks to explain
//! anything spends no memory on them.

use flate2::read::GzDecoder;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io::Read as _,
    sync::{Arc, Weak},
};

static COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.gz"));

pub struct Descriptions {
    text: String,
    /// Where each type's lines are.
    types: HashMap<String, std::ops::Range<usize>>,
}

/// Unpacked by whoever makes a document now, if anybody does.
static IN_USE: Mutex<Weak<Descriptions>> = Mutex::new(Weak::new());

impl Descriptions {
    pub fn unpack() -> Arc<Self> {
        let mut in_use = IN_USE.lock();
        if let Some(unpacked) = in_use.upgrade() {
            return unpacked;
        }
        let unpacked = Arc::new(Self::read());
        *in_use = Arc::downgrade(&unpacked);
        unpacked
    }

    fn read() -> Self {
        let mut text = String::new();
        if let Err(error) = GzDecoder::new(COMPRESSED).read_to_string(&mut text) {
            tracing::error!(%error, "the descriptions in this program are damaged");
        }
        let mut types: HashMap<String, std::ops::Range<usize>> = HashMap::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let end = at + line.len();
            let name = line.split('\t').next().unwrap_or_default();
            // A type's lines follow each other.
            match types.get_mut(name) {
                Some(range) => range.end = end,
                None => drop(types.insert(name.to_owned(), at..end)),
            }
            at = end;
        }
        Self { text, types }
    }

    /// Of a type's fields, and under the empty name of the type itself.
    pub fn of(&self, name: &str) -> HashMap<&str, String> {
        let Some(range) = self.types.get(name) else { return HashMap::new() };
        let fields = self.text[range.clone()].lines().filter_map(|line| {
            let mut parts = line.splitn(3, '\t').skip(1);
            Some((parts.next()?, parts.next()?.replace("\\n", "\n")))
        });
        fields.collect()
    }
}
