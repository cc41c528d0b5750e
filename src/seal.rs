//! Texts that only we can read and make, so that a client can keep for us what we need not keep.
//!
//! Sealed with AES-256-GCM under a random nonce; the purpose is bound in, so that a session id
//! can't be used as a request's state.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};

/// The file in the state directory that holds the key when none is configured.
const KEY_FILE: &str = "sealing.key";

/// Longest text that is looked at: sealed texts come from outside.
const SEALED_MAX: usize = 1 << 20;

/// What a sealed text is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `Mcp-Session-Id` of an old client.
    Session,
    /// `requestState` of a client of the newest revision.
    RequestState,
    /// The id of a task.
    Task,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Purpose::Session => b"weir session 1",
            Purpose::RequestState => b"weir request state 1",
            Purpose::Task => b"weir task 1",
        }
    }
}

/// A name of 128 random bits for a URL or a sealed text, in visible ASCII: nobody can guess it.
pub fn random_name() -> Box<str> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    URL_SAFE_NO_PAD.encode(bytes).into()
}

/// Seals and opens. Has no `Debug` that shows the key.
pub struct Sealer(LessSafeKey);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// A sealer of this secret. Gateways with the same secret open each other's texts.
    pub fn new(secret: &[u8]) -> Sealer {
        let key = Sha256::new().chain_update(b"weir sealing key 1").chain_update(secret).finalize();
        let key = UnboundKey::new(&AES_256_GCM, &key).expect("a digest is as long as a key");
        Sealer(LessSafeKey::new(key))
    }

    /// A sealer whose key dies with the process.
    pub fn random() -> Sealer {
        Sealer::new(&secret())
    }

    /// A sealer of the key kept in `dir`; makes one at the first time, readable by us alone.
    ///
    /// # Errors
    /// When the file can neither be read nor made.
    pub fn kept(dir: &Path) -> std::io::Result<Sealer> {
        let path = dir.join(KEY_FILE);
        let damaged = match std::fs::read(&path) {
            Ok(key) if key.len() == 32 => return Ok(Sealer::new(&key)),
            Ok(_) => true,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        std::fs::create_dir_all(dir)?;
        // Whole or not at all, also when two start at once: the first that links wins.
        let key = secret();
        let draft = dir.join(format!("{KEY_FILE}.{}", std::process::id()));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&key)?;
        file.sync_all()?;
        let linked = match std::fs::hard_link(&draft, &path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && !damaged => Ok(()),
            // Something else stands there, or the file system has no links.
            Err(_) => std::fs::rename(&draft, &path),
            Ok(()) => Ok(()),
        };
        // After a rename there is none.
        let _ = std::fs::remove_file(&draft);
        linked?;
        Ok(Sealer::new(&std::fs::read(&path)?))
    }

    /// Seal. URL-safe text.
    pub fn seal(&self, purpose: Purpose, plain: &[u8]) -> String {
        let mut nonce = [0u8; NONCE_LEN];
        getrandom::fill(&mut nonce).expect("the operating system gives random bytes");
        let mut sealed = plain.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose.label()),
                &mut sealed,
            )
            .expect("a short text can be sealed");
        let mut out = nonce.to_vec();
        out.extend_from_slice(&sealed);
        URL_SAFE_NO_PAD.encode(out)
    }

    /// Open; `None` if it is not ours, not for this purpose, or was changed.
    pub fn open(&self, purpose: Purpose, text: &str) -> Option<Vec<u8>> {
        if text.len() > SEALED_MAX {
            return None;
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let nonce: [u8; NONCE_LEN] = bytes.get(..NONCE_LEN)?.try_into().ok()?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let aad = Aad::from(purpose.label());
        let plain = self.0.open_within(nonce, aad, &mut bytes, NONCE_LEN..).ok()?;
        Some(plain.to_vec())
    }
}

fn secret() -> [u8; 32] {
    let mut secret = [0u8; 32];
    getrandom::fill(&mut secret).expect("the operating system gives random bytes");
    secret
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_for_its_purpose_and_its_key_only() {
        let (ours, same, other) = (Sealer::new(b"k"), Sealer::new(b"k"), Sealer::new(b"other"));
        let text = ours.seal(Purpose::Session, b"plain");
        assert_eq!(same.open(Purpose::Session, &text).unwrap(), b"plain");
        assert!(ours.open(Purpose::RequestState, &text).is_none());
        assert!(other.open(Purpose::Session, &text).is_none());
        assert_ne!(text, ours.seal(Purpose::Session, b"plain"), "never the same twice");
        for at in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            // The last character has bits that mean nothing.
            let opened = ours.open(Purpose::Session, &forged);
            assert!(opened.is_none() || at == text.len() - 1, "{at}");
        }
        for odd in ["", "AAAA", "!!", &"A".repeat(SEALED_MAX + 1)] {
            assert!(ours.open(Purpose::Session, odd).is_none());
        }
    }

    #[test]
    fn the_kept_key_is_the_same_next_time_and_for_us_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let text = Sealer::kept(dir.path()).unwrap().seal(Purpose::Session, b"x");
        assert!(Sealer::kept(dir.path()).unwrap().open(Purpose::Session, &text).is_some());
        let mode = std::fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
