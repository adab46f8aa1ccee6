//! The fuzz targets over their corpus and random changes of it, a bounded number of times and the same each time.

#[path = "../../../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 3, "a corpus of `{target}`");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn run(target: &str, check: fn(&[u8])) {
    let corpus = corpus(target);
    corpus.iter().for_each(|bytes| check(bytes));
    let mut random = Random(0x0dd_ba11);
    for _ in 0..60_000 {
        let mut bytes = corpus[random.below(corpus.len())].clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len());
            match random.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random.below(256) as u8),
                2 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
                // What means something: lengths, pointers, counts.
                3 if !bytes.is_empty() => bytes[at] = [0, 1, 12, 63, 64, 0x80, 0xc0, 0xff][random.below(8)],
                _ => {
                    let other = &corpus[random.below(corpus.len())];
                    bytes.extend_from_slice(&other[random.below(other.len())..]);
                }
            }
        }
        check(&bytes);
    }
}

#[test]
fn questions() {
    run("query", targets::query);
}

#[test]
fn answers_of_upstreams() {
    run("response", targets::response);
}

#[test]
fn the_cache() {
    run("cache", targets::cache);
}
