//! Public names and URIs: the only place that makes them or takes them apart.
//!
//! A public name depends on the upstream and the native name alone, never on who else is there,
//! so it stays the same over restarts and changes of the configuration. Two native names that
//! still come out the same are told apart by [`super::merge`], which keeps the first.
//!
//! Names are not reversible (they may be cut): the native name stands in the catalog's table and
//! is never cut out of the public one. URIs are reversible text, because a client may ask for one
//! that stands in no list.

use std::borrow::Cow;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// Longest public name, in bytes. Model interfaces take 64 characters of `[A-Za-z0-9_-]` and
/// refuse the whole request over one longer name.
pub const NAME_MAX: usize = 64;

/// What stands between the upstream and the native name. An upstream's name holds no `_`, so the
/// first one ends it.
pub const SEPARATOR: &str = "__";

/// Hexadecimal digits that tell changed names apart. Eight: with the thousands of changed names
/// that one upstream could have, two that also begin alike are not to be expected.
const HASH_DIGITS: usize = 8;

/// Longest name of an upstream, in bytes.
const UPSTREAM_MAX: usize = 16;

/// Schemes that clients look at: these URIs keep theirs, and the upstream's name becomes the
/// first segment. The last segment of a skill's URI is the skill's name and stays.
const KEPT_SCHEMES: [&str; 2] = ["ui://", "skill://"];

/// The public name of a tool or prompt.
pub fn exposed_name(upstream: &str, prefixed: bool, native: &str) -> String {
    let mut name = if prefixed { format!("{upstream}{SEPARATOR}") } else { String::new() };
    let start = name.len();
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    name.extend(native.chars().map(|c| if legal(c) { c } else { '_' }));
    if name.len() <= NAME_MAX && &name[start..] == native && !name.is_empty() {
        return name;
    }
    name.truncate(NAME_MAX - 1 - HASH_DIGITS);
    name.push('_');
    // The separator cannot stand in an upstream's name, so no two pairs are hashed as one text.
    let hash =
        Sha256::new().chain_update(upstream).chain_update([0]).chain_update(native).finalize();
    name.push_str(&hex(&hash[..HASH_DIGITS / 2]));
    name
}

/// The public URI of a resource, or URI template of a template: the expressions of a template
/// stay as they are, because only text before the first is added.
pub fn exposed_uri(upstream: &str, prefixed: bool, native: &str) -> String {
    if !prefixed {
        return native.to_owned();
    }
    for scheme in KEPT_SCHEMES {
        if let Some(rest) = native.strip_prefix(scheme) {
            return format!("{scheme}{upstream}/{rest}");
        }
    }
    format!("{upstream}+{native}")
}

/// The upstream and the native URI of a public one; exactly the inverse of [`exposed_uri`] with a
/// prefix, and `None` for text that it never makes. Whether there is such an upstream is not
/// known here.
pub fn native_uri(public: &str) -> Option<(&str, Cow<'_, str>)> {
    for scheme in KEPT_SCHEMES {
        if let Some(rest) = public.strip_prefix(scheme) {
            let (upstream, rest) = rest.split_once('/')?;
            return is_upstream(upstream).then(|| (upstream, format!("{scheme}{rest}").into()));
        }
    }
    let (upstream, native) = public.split_once('+')?;
    let canonical = !KEPT_SCHEMES.iter().any(|scheme| native.starts_with(scheme));
    (canonical && is_upstream(upstream)).then_some((upstream, native.into()))
}

/// The upstream that a public name of this form would belong to, for names that stand in no table
/// because the upstream's list was never seen. Says nothing about the native name.
pub fn upstream_of_name(public: &str) -> Option<&str> {
    public.split_once(SEPARATOR).map(|(upstream, _)| upstream).filter(|u| is_upstream(u))
}

/// Whether `text` can be an upstream's name: `[a-z][a-z0-9-]{0,15}`.
pub fn is_upstream(text: &str) -> bool {
    text.len() <= UPSTREAM_MAX
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_kept_where_they_are_legal() {
        assert_eq!(exposed_name("stripe", true, "create_refund"), "stripe__create_refund");
        assert_eq!(exposed_name("a", true, "b__c"), "a__b__c");
        assert_eq!(exposed_name("stripe", false, "create_refund"), "create_refund");
        assert_eq!(exposed_name("a", true, &"x".repeat(61)).len(), NAME_MAX);
    }

    #[test]
    fn changed_names_carry_a_hash_of_what_they_were() {
        insta::assert_snapshot!(exposed_name("crm", true, "files/read"), @"crm__files_read_c16a1a8d");
        insta::assert_snapshot!(exposed_name("crm", true, "files.read"), @"crm__files_read_66fabeac");
        insta::assert_snapshot!(exposed_name("erp", true, "files.read"), @"erp__files_read_1ccbdb6a");
        insta::assert_snapshot!(exposed_name("crm", true, "über uns"), @"crm___ber_uns_e1830adf");
        insta::assert_snapshot!(exposed_name("crm", false, ""), @"_b750df92");
        insta::assert_snapshot!(
            exposed_name("a-long-upstream1", true, &"abcdefgh".repeat(10)),
            @"a-long-upstream1__abcdefghabcdefghabcdefghabcdefghabcde_fe7ab2c2"
        );
    }

    #[test]
    fn uris_carry_their_upstream() {
        for (native, public) in [
            ("file:///a", "crm+file:///a"),
            ("file:///{path}{?q*}", "crm+file:///{path}{?q*}"),
            ("ui://x/y.html", "ui://crm/x/y.html"),
            ("skill://pdf/SKILL.md", "skill://crm/pdf/SKILL.md"),
            ("no scheme", "crm+no scheme"),
            ("", "crm+"),
            ("ui:x", "crm+ui:x"),
            ("erp+file:///a", "crm+erp+file:///a"),
        ] {
            assert_eq!(exposed_uri("crm", true, native), public);
            assert_eq!(native_uri(public), Some(("crm", native.into())));
            assert_eq!(exposed_uri("crm", false, native), native);
        }
        for foreign in ["", "file:///a", "Crm+x:", "+x", "ui://crm", "crm+ui://x", "ui://C/x"] {
            assert_eq!(native_uri(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_name_tells_whose_it_would_be() {
        assert_eq!(upstream_of_name("crm__a__b"), Some("crm"));
        assert_eq!(upstream_of_name("Crm__a"), None);
        assert_eq!(upstream_of_name("crm"), None);
    }

    fn upstream() -> impl Strategy<Value = String> {
        "[a-z][a-z0-9-]{0,15}"
    }
    // Text that is likely to look like what we make.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "(ui://|skill://|ui:|[a-z]{1,3}\\+|[a-z]{1,3}/|__|\\{[a-z]\\}|é|/){0,5}",
        ]
    }

    proptest! {
        #[test]
        fn public_names_are_legal_and_tell_their_upstream(up in upstream(), native in text()) {
            let name = exposed_name(&up, true, &native);
            prop_assert!(name.len() <= NAME_MAX);
            prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
            prop_assert_eq!(upstream_of_name(&name), Some(up.as_str()));
            let bare = exposed_name(&up, false, &native);
            prop_assert!(!bare.is_empty() && bare.len() <= NAME_MAX);
        }

        #[test]
        fn native_uri_undoes_exposed_uri(up in upstream(), native in text()) {
            let public = exposed_uri(&up, true, &native);
            prop_assert_eq!(native_uri(&public), Some((up.as_str(), native.into())));
        }

        #[test]
        fn exposed_uri_undoes_native_uri(public in text()) {
            if let Some((up, native)) = native_uri(&public) {
                prop_assert_eq!(exposed_uri(up, true, &native), public);
            }
        }
    }
}
