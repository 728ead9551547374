//! The allocator, and what a burst needed given back: memory that nobody uses, and pages of the program that ran once.
//!
//! Pages of the program come back by themselves when they are needed, from the page cache and not from the disk, at a
//! microsecond a page.
//! Upstream: <https://jemalloc.net/jemalloc.3.html>
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "madvise and the allocator's options have no safe form")
)]
#![cfg_attr(not(target_arch = "x86_64"), expect(unsafe_code, reason = "malloc_trim and madvise have no safe form"))]

use kfbox_base::Tasks;
use std::{fs, ops::Range, time::Duration};

/// A daemon that lives for months must not keep a burst's memory: with glibc's malloc, what a thousand pods needed and left was
/// scattered over three times the pages that it filled. Elsewhere the size of a page is not known when it is compiled.
#[cfg(target_arch = "x86_64")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Few heaps, because idle memory counts for more here than allocation under contention; what is free goes back in a second.
#[cfg(target_arch = "x86_64")]
#[unsafe(export_name = "malloc_conf")]
static OPTIONS: Options = Options(c"narenas:2,background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0".as_ptr());

#[cfg(target_arch = "x86_64")]
#[repr(transparent)]
struct Options(*const std::ffi::c_char);

// SAFETY: the text is constant.
#[cfg(target_arch = "x86_64")]
unsafe impl Sync for Options {}

const EVERY: Duration = Duration::from_secs(60);

/// Once a minute, the first time a few seconds from now: what follows a start has run by then.
pub fn keep_small(tasks: &Tasks) {
    let shutdown = tasks.shutdown();
    drop(tasks.spawn("memory", async move {
        let mut wait = Duration::from_secs(3);
        while tokio::time::timeout(wait, shutdown.cancelled()).await.is_err() {
            drop(tokio::task::spawn_blocking(give_back).await);
            wait = EVERY;
        }
    }));
}

fn give_back() {
    #[cfg(all(target_env = "gnu", not(target_arch = "x86_64")))]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
    let Ok(program) = fs::read_link("/proc/self/exe") else { return };
    let Ok(maps) = fs::read_to_string("/proc/self/smaps") else { return };
    for part in constant_parts(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is a mapping of the program's own file that cannot be written and of which no page was ever
        // changed, so each page that is dropped reads the same when it is read from the file again. Mappings of the
        // running program are never removed.
        unsafe {
            libc::madvise(part.start as *mut libc::c_void, part.len(), libc::MADV_DONTNEED);
        }
    }
}

/// The mappings of `program` whose pages are all as they are in its file: code and constants that needed no relocation.
fn constant_parts(smaps: &str, program: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(range) = header(line, program) {
            current = range;
        } else if let Some(amount) = line.strip_prefix("Anonymous:")
            && amount.trim() == "0 kB"
        {
            parts.extend(current.take());
        }
    }
    parts
}

/// Of a line that begins a mapping: its range, if it is a read-only one of `program`.
fn header(line: &str, program: &str) -> Option<Option<Range<usize>>> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let access = fields.next()?;
    let path = fields.nth(3).unwrap_or_default().trim_start();
    Some((path == program && access.starts_with('r') && !access.contains('w')).then_some(start..end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_parts_of_the_program_are_named() {
        let smaps = "\
55d0000-55d1000 r--p 00000000 fe:00 123                        /usr/bin/kfbox\nRss: 4 kB\nAnonymous:             0 kB\n\
55d1000-55d3000 r-xp 00001000 fe:00 123                        /usr/bin/kfbox\nAnonymous:             0 kB\n\
55d3000-55d4000 r--p 00003000 fe:00 123                        /usr/bin/kfbox\nAnonymous:             4 kB\n\
55d4000-55d5000 rw-p 00004000 fe:00 123                        /usr/bin/kfbox\nAnonymous:             0 kB\n\
66d4000-66d5000 rw-p 00000000 00:00 0                          [heap]\nAnonymous:             0 kB\n\
7ff4000-7ff5000 r-xp 00000000 fe:00 9                          /usr/lib/libc.so.6\nAnonymous:             0 kB\n";
        assert_eq!(constant_parts(smaps, "/usr/bin/kfbox"), [0x55d_0000..0x55d_1000, 0x55d_1000..0x55d_3000]);
    }

    #[test]
    fn what_was_given_back_comes_back() {
        let resident = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("RssFile:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = resident();
        give_back();
        assert!(resident() < before);
        // The program still runs, and so do parts of it that did not before.
        assert_eq!(serde_json::json!({"a": [1, 2.5]}).to_string(), r#"{"a":[1,2.5]}"#);
    }
}
