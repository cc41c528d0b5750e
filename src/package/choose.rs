//! Which of a package's programs is meant.

use super::{PackageError, label};
use crate::config::PackageSpec;

/// Of the programs `names`: the one that `bin` names, or the only one, or the one called as the
/// package itself (`own`).
pub(super) fn choose(
    spec: &PackageSpec,
    names: &[String],
    own: &str,
) -> Result<String, PackageError> {
    let wrong = |what: String| Err(PackageError::NoProgram { package: label(spec), what });
    let list = || names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    match (&spec.bin, names) {
        (_, []) => wrong("has no program to run: is it a library?".to_owned()),
        (Some(bin), _) if names.contains(bin) => Ok(bin.clone()),
        (Some(bin), _) => wrong(format!("has no program `{bin}`; set `bin` to one of {}", list())),
        (None, [only]) => Ok(only.clone()),
        (None, _) if names.iter().any(|n| n == own) => Ok(own.to_owned()),
        (None, _) => wrong(format!("has several programs; set `bin` to one of {}", list())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Registry;

    fn check(bin: Option<&str>, names: &[&str]) -> Result<String, String> {
        let spec = PackageSpec {
            registry: Registry::Npm,
            name: "@s/own".into(),
            version: "1.0.0".into(),
            bin: bin.map(Into::into),
        };
        let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
        choose(&spec, &names, "own").map_err(|e| e.to_string())
    }

    #[test]
    fn the_program_is_clear_or_the_choices_are_named() {
        assert_eq!(check(None, &["x"]).as_deref(), Ok("x"));
        assert_eq!(check(None, &["x", "own"]).as_deref(), Ok("own"));
        assert_eq!(check(Some("x"), &["x", "own"]).as_deref(), Ok("x"));
        insta::assert_snapshot!(
            check(None, &["x", "y"]).unwrap_err(),
            @"npm:@s/own@1.0.0 has several programs; set `bin` to one of `x`, `y`"
        );
        insta::assert_snapshot!(
            check(Some("z"), &["x"]).unwrap_err(),
            @"npm:@s/own@1.0.0 has no program `z`; set `bin` to one of `x`"
        );
        insta::assert_snapshot!(
            check(None, &[]).unwrap_err(),
            @"npm:@s/own@1.0.0 has no program to run: is it a library?"
        );
    }
}
