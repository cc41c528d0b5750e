//! What a child gets to see of our environment: next to nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::config::StdioConfig;

/// Variables handed on from our own environment when set; nothing else is but what the
/// configuration names. A server needs these to find programs, its home and its language.
pub const BASE_ENV: &[&str] = &["PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME"];

/// The whole environment of a child; `ours` stands for our own. Named variables go before
/// inherited ones.
pub(super) fn environment(
    config: &StdioConfig,
    ours: &dyn Fn(&str) -> Option<OsString>,
) -> BTreeMap<OsString, OsString> {
    let inherited = BASE_ENV.iter().copied().chain(config.inherit_env.iter().map(String::as_str));
    let mut env: BTreeMap<OsString, OsString> = inherited
        .filter_map(|name| Some((name.into(), ours(name)?)))
        // An exported shell function: some shells run what stands in it.
        .filter(|(_, value): &(OsString, OsString)| !value.as_encoded_bytes().starts_with(b"()"))
        .collect();
    env.extend(config.env.iter().map(|(name, value)| (name.into(), value.expose().into())));
    env
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Program;
    use crate::config::secret::Template;

    #[test]
    fn only_what_is_promised_is_handed_on() {
        let config = StdioConfig {
            program: Program::Command("x".into()),
            args: vec![],
            env: [
                ("KEY".to_owned(), Template::literal("k")),
                ("LANG".into(), Template::literal("C")),
            ]
            .into(),
            inherit_env: vec!["PROXY".into(), "UNSET".into(), "FUNCTION".into()],
            cwd: None,
            stderr_per_minute: 1,
            restart_backoff: Duration::from_secs(1),
            restart_backoff_max: Duration::from_secs(1),
        };
        let ours = |name: &str| match name {
            "PATH" => Some("/bin".into()),
            "LANG" => Some("de".into()),
            "HOME" | "FUNCTION" => Some("() { :; }".into()),
            "PROXY" => Some("p".into()),
            "SECRET" => Some("never".into()),
            _ => None,
        };
        let env = environment(&config, &ours);
        let env: Vec<_> =
            env.iter().map(|(k, v)| format!("{}={}", k.display(), v.display())).collect();
        assert_eq!(env, ["KEY=k", "LANG=C", "PATH=/bin", "PROXY=p"]);
    }
}
