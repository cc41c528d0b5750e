//! What a gateway starts with: its file or, if told so and the file is broken, the last good one.

use std::path::Path;
use std::time::SystemTime;

use super::{AppError, Origin, ServeOptions, adjust};
use crate::config::{self, Config, Trouble};
use crate::control::good::Place;
use crate::control::watch;

/// Read what to start with.
pub(super) fn read(options: &ServeOptions) -> Result<(Config, Origin), AppError> {
    let seen = watch::look(&options.config);
    let origin = |says, broken| Origin { options: options.clone(), says, seen, broken };
    match (super::read(options), &options.last_good) {
        (Ok((config, says)), _) => Ok((config, origin(says, None))),
        (Err(AppError::Config(problems)), Some(state_dir)) => {
            let (config, says) = last_good(options, state_dir, &problems)?;
            Ok((config, origin(says, Some(problems))))
        }
        (Err(e), _) => Err(e),
    }
}

fn last_good(
    options: &ServeOptions,
    state_dir: &Path,
    problems: &str,
) -> Result<(Config, super::FileSays), AppError> {
    let place = place(options, state_dir);
    let none = |why: String| {
        AppError::Config(format!(
            "{problems}\n--last-good: there is no last good configuration to serve instead: {}: \
             {why}; name the state_dir with --last-good=STATE_DIR if it is another one",
            place.path().display()
        ))
    };
    let text = place.load().map_err(|e| none(e.to_string()))?;
    let mut config = config::parse_here(&text, place.path()).map_err(|e| none(e.to_string()))?;
    let says = adjust(options, &mut config).map_err(none)?;
    Ok((config, says))
}

/// Where the last good configuration is. An empty `state_dir` is the one that the file names, as
/// far as it can be read, or the default one.
pub(super) fn place(options: &ServeOptions, state_dir: &Path) -> Place {
    if !state_dir.as_os_str().is_empty() {
        return Place::of(state_dir, &options.config);
    }
    // Bytes that are no text are part of what can be wrong with it.
    let text = std::fs::read(&options.config).unwrap_or_default();
    let env = |name: &str| std::env::var(name).ok();
    Place::of(&config::state_dir(&String::from_utf8_lossy(&text), &env), &options.config)
}

/// Say loudly that it is not the file that is served.
pub(super) fn tell_last_good(config: &Config, origin: &Origin) {
    let Some(problems) = &origin.broken else { return };
    let place = Place::of(&config.gateway.state_dir, &origin.options.config);
    let kept = std::fs::metadata(place.path()).and_then(|m| m.modified());
    let kept = kept.unwrap_or(SystemTime::UNIX_EPOCH);
    tracing::warn!(reason = %Trouble::LastGood, file = %origin.options.config.display(),
        kept = %humantime::format_rfc3339_seconds(kept), remedy = Trouble::LastGood.remedy(),
        %problems, "THE CONFIGURATION IS BROKEN: the last good one is served instead");
}
