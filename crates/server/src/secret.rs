//! What must be unguessable or unique comes from the operating system's randomness, here and nowhere else.

use drover_model::{TokenId, VmId};
use rand::TryRng as _;
use rand::rngs::SysRng;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// RFC 4648 section 6 in lower case: every letter is allowed in a DNS label.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A secret as it is handed out, once. Never shown by `Debug`, never kept: the store holds its hash.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The only way to the text: for the one answer or file it goes into.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn sha256(&self) -> String {
        sha256_hex(self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// An API token: `drover_<id>_<64 hexadecimal digits>`. The hash kept is that of the whole text.
pub fn api_token(id: &TokenId) -> Secret {
    Secret(format!("drover_{id}_{}", hex(&random::<32>())))
}

/// The secret part of a join token.
pub fn join_secret() -> Secret {
    Secret(hex(&random::<32>()))
}

pub fn vm_id() -> VmId {
    let id = format!("vm-{}", fresh());
    id.parse().expect("lower-case letters and digits after vm- are a label")
}

/// What an id is made of: 12 random lower-case letters and digits.
pub fn fresh() -> String {
    letters::<12>()
}

pub fn token_id(prefix: &str) -> TokenId {
    let id = format!("{prefix}-{}", letters::<8>());
    id.parse().expect("a short prefix, a hyphen and lower-case letters are a label")
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

fn letters<const N: usize>() -> String {
    random::<N>().iter().map(|byte| char::from(BASE32[usize::from(byte & 31)])).collect()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // getrandom(2) fails only on a kernel without it or before the pool is seeded at boot; a server
    // without randomness must not hand out secrets.
    SysRng.try_fill_bytes(&mut bytes).expect("the operating system gives randomness");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_labels_and_differ() {
        let one = vm_id();
        assert_eq!(one.as_str().len(), 15);
        assert_ne!(one, vm_id());
        assert!(token_id("join").as_str().starts_with("join-"));
    }

    #[test]
    fn a_secret_is_never_shown() {
        let token = api_token(&"ops".parse().unwrap());
        assert!(token.reveal().starts_with("drover_ops_"));
        assert_eq!(token.reveal().len(), "drover_ops_".len() + 64);
        assert_eq!(format!("{token:?}"), "Secret");
    }

    #[test]
    fn hashes_are_lower_case_hexadecimal() {
        // FIPS 180-4 example.
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
