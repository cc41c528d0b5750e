//! The command line.

pub mod plan;
pub mod render;
pub mod why;

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::app::findings::Findings;
use crate::app::handed::Handed;
use crate::app::report::UpstreamReport;
use crate::app::{self, AppError, ServeOptions};
use crate::bridge;
use crate::config::secret::{ConsumerKey, Missing, Template, new_key};
use crate::config::{self, LogFormat};
use crate::control::plan::Verdict;

/// Exit codes, as the help says them.
const EXIT_PROBLEM: u8 = 1;
const EXIT_START: u8 = 3;
const EXIT_REFUSED: u8 = 4;

const AFTER: &str = "\
Examples:
  weir                                   serve ./upstreams.toml at its gateway.listen
  weir --config /etc/weir/upstreams.toml --log-format json
  weir stdio --connect http://127.0.0.1:8080/mcp    a desktop client to a gateway that runs
  weir check                             every problem of the file, with its line
  weir check --connect                   and try each upstream
  weir plan new.toml                     what new.toml would change
  weir catalog --consumer px-bot         what px-bot would see
  weir call hubspot__hubspot-get-user-details '{}'
  weir why px-bot stripe__create_refund  can it call that now, and what decides
  weir key new px-bot                    a key for a new consumer
  weir schema > upstreams.schema.json    for your editor

Exit codes: 0 done; 1 problems in the configuration (of any command, serve and stdio too), an
upstream that `check --connect` cannot reach, a call that failed, or one that `why` says would; 2
wrong usage; 3 could not start although the configuration is fine, such as an address in use, or for
`why` and `plan --admin`: no gateway answers; 4 `plan`: a running gateway would refuse the
configuration.";

const SERVE_AFTER: &str = "\
A configuration that was in force, and of which nothing had to be rolled back, is kept as written in
state_dir/config, readable for the gateway's user alone. With --last-good a start whose file is
broken serves that one: the log, /status (`config.in_force`) and the metric
`weir_config_on_last_good` say so, and the file is applied as soon as it is mended. Keys of
consumers that were taken out in the meantime are good again then. Without the flag a broken file is
refused with exit code 1.

Example:
  weir serve --last-good --config /etc/weir/upstreams.toml";

const PLAN_AFTER: &str = "\
Asks the gateway that runs, over its admin listener, what applying FILE would do: for each consumer
and view the tools that appear, vanish, are renamed or change, the size of the catalog before and
after, what happens to each upstream and by which keys, and what would be refused. Nothing is
applied. Without a gateway that answers, FILE is compared with the last good configuration and the
catalogs kept in state_dir, and the first line says so.

Exit code 0 if it changes nothing or can be applied, 1 if the file is broken (every problem is
named), 4 if a running gateway would refuse it, 3 if nobody answers at --admin, or if the gateway
stays busy with other plans: it makes one at once, and is asked again for half a minute.

Examples:
  weir plan new.toml
  weir plan --json new.toml | jq '.audiences[] | {name, changes}'
  weir plan --connect new.toml";

const STDIO_AFTER: &str = r#"Examples, in a client's configuration:
  a gateway of its own:
    { "mcpServers": { "weir": { "command": "weir", "args": ["stdio", "--config", "/etc/weir/upstreams.toml"] } } }
  the gateway that is running already, for the consumer whose key it is:
    { "mcpServers": { "weir": { "command": "weir", "args": ["stdio", "--connect", "https://weir.example/mcp"], "env": { "WEIR_TOKEN": "weir_…" } } } }

With --connect no configuration is read. The key is --token-file, --token, or else WEIR_TOKEN."#;

/// The variable that holds the key for `--connect`.
const TOKEN: &str = "WEIR_TOKEN";

/// One MCP endpoint in front of many MCP servers.
#[derive(Parser)]
#[command(name = "weir", version, about, after_help = AFTER)]
struct Args {
    /// The configuration
    #[arg(long, short, global = true, default_value = "upstreams.toml", value_name = "PATH")]
    config: PathBuf,
    /// Listen here instead of at gateway.listen
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Form of log lines, instead of log.format
    #[arg(long, global = true, value_name = "FORM")]
    log_format: Option<Format>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the endpoint (this is what `weir` alone does)
    #[command(after_help = SERVE_AFTER)]
    Serve {
        /// If the configuration is broken, serve the last good one, loudly; it is looked for in
        /// the state_dir that the file names, as far as that can be read, or in this one
        #[arg(long, value_name = "STATE_DIR", num_args = 0..=1, require_equals = true)]
        last_good: Option<Vec<PathBuf>>,
    },
    /// Serve over stdin and stdout, as a child of a desktop client
    #[command(
        after_help = STDIO_AFTER
    )]
    Stdio {
        /// See what this consumer sees; without it: everything
        #[arg(long, value_name = "NAME")]
        consumer: Option<String>,
        #[command(flatten)]
        elsewhere: Elsewhere,
    },
    /// Validate the configuration without starting anything
    #[command(
        after_help = "Prints every problem at once, as FILE:LINE:COLUMN: KEY: what is wrong, and what to do.\nWhat the file names and this machine lacks is a problem too; warnings are none.\nExit code 0 if there is no problem, else 1. With --connect also 1 if an upstream cannot be reached;\na dormant one (no credential yet) is no failure."
    )]
    Check {
        /// Also start or connect each upstream and load its lists
        #[arg(long)]
        connect: bool,
    },
    /// Show what a configuration would change, before it is applied
    #[command(after_help = PLAN_AFTER)]
    Plan {
        /// The configuration that would be applied; without it: the one of --config
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Also start or connect new upstreams whose tools are not known yet, here, to find out
        #[arg(long)]
        connect: bool,
        /// The admin listener of the gateway that runs; without it: admin.listen of the
        /// configuration
        #[arg(long, value_name = "ADDRESS")]
        admin: Option<SocketAddr>,
    },
    /// Show what each consumer would see
    #[command(
        after_help = "Starts the upstreams, loads their lists, prints, and stops them again.\n\nExamples:\n  weir catalog\n  weir catalog --json | jq '.upstreams[] | {name, lists}'"
    )]
    Catalog {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Only this consumer
        #[arg(long, value_name = "NAME")]
        consumer: Option<String>,
    },
    /// Call one tool through the same walk as an agent's call
    #[command(
        after_help = "Prints the result as it came. Exit code 1 if the call failed or the tool says isError.\n\nExample:\n  weir call time__get_current_time '{\"timezone\":\"UTC\"}'"
    )]
    Call {
        /// Public name of the tool
        name: String,
        /// Its arguments, a JSON object
        #[arg(default_value = "{}")]
        arguments: String,
        /// Call as this consumer; without it: as the operator, who sees everything
        #[arg(long, value_name = "NAME")]
        consumer: Option<String>,
    },
    /// Ask the running gateway whether a consumer can call a tool now, and what decides it
    #[command(
        after_help = "Asks at admin.listen of the configuration; nothing is called, and no limit is touched.\nExit code 0 if the tool can be called, 1 if not, 3 if no gateway answers.\n\nExamples:\n  weir why px-bot stripe__create_refund\n  weir why anonymous crm__find --json | jq .refused.reason"
    )]
    Why {
        /// The consumer; without configured ones everybody is `anonymous`
        consumer: String,
        /// Public name of the tool
        tool: String,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Ask at this address; the configuration is not read then
        #[arg(long, value_name = "ADDRESS")]
        admin: Option<SocketAddr>,
    },
    /// Print the JSON Schema of the configuration
    #[command(
        after_help = "Example (taplo and the editors that use it read the first line of upstreams.toml):\n  weir schema > upstreams.schema.json\n  #:schema ./upstreams.schema.json"
    )]
    Schema,
    /// Keys of consumers
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

// The gateway that `weir stdio` leads to, if it is to start none. No doc comment: it would stand in
// the place of the command's own.
#[derive(clap::Args)]
struct Elsewhere {
    /// Start nothing: carry the messages to the gateway that runs at this URL, and reconnect
    #[arg(long, value_name = "URL", conflicts_with_all = ["consumer", "config", "listen"])]
    connect: Option<String>,
    /// The consumer's key is the content of this file
    #[arg(long, value_name = "FILE", requires = "connect", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The consumer's key. Other users of the machine can see it here: prefer --token-file or the
    /// variable WEIR_TOKEN
    #[arg(long, value_name = "KEY", requires = "connect")]
    token: Option<String>,
    /// How long a message waits for a gateway that is away, in seconds
    #[arg(long, value_name = "SECONDS", requires = "connect", default_value_t = bridge::PATIENCE.as_secs())]
    patience: u64,
}

impl Elsewhere {
    // What to bridge to; an error is for the operator.
    fn options(self) -> Result<Option<bridge::Options>, String> {
        let Some(url) = self.connect else { return Ok(None) };
        let resolve = |text: &str, value: Option<String>| {
            let read = |path: &str| std::fs::read_to_string(path);
            Template::resolve(text, &|_| value.clone(), &read).map_err(|missing| match missing {
                Missing::Absent(text) | Missing::Malformed(text) => format!("--token-file: {text}"),
            })
        };
        let token = match (self.token_file, self.token.or_else(|| std::env::var(TOKEN).ok())) {
            (Some(file), _) => Some(resolve(&format!("file:{}", file.display()), None)?),
            (None, Some(token)) if !token.is_empty() => {
                Some(resolve(&format!("${{{TOKEN}}}"), Some(token))?)
            }
            _ => None,
        };
        Ok(Some(bridge::Options { url, token, patience: Duration::from_secs(self.patience) }))
    }
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key and print it once, with the section to paste
    #[command(
        after_help = "The key goes to stdout, once and alone; the section for upstreams.toml, which holds only\nits digest, to stderr.\n\nExample:\n  weir key new px-bot > px-bot.key"
    )]
    New {
        /// Name of the consumer
        name: String,
    },
}

/// Run the command line, with what was handed over to the process.
pub fn main(handed: Handed) -> ExitCode {
    let mut command = Args::command();
    let matches = command.get_matches_mut();
    let args = Args::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    if let Some(Command::Stdio { elsewhere: Elsewhere { connect: Some(_), .. }, .. }) =
        &args.command
    {
        // Those before the subcommand, which its own rules do not see.
        for name in ["config", "listen"] {
            if matches.value_source(name) == Some(ValueSource::CommandLine) {
                let text =
                    format!("--{name} cannot be used with --connect, which reads no configuration");
                command.error(ErrorKind::ArgumentConflict, text).exit();
            }
        }
    }
    let options = ServeOptions {
        last_good: None,
        config: args.config,
        listen: args.listen,
        log_format: args.log_format.map(|f| match f {
            Format::Json => LogFormat::Json,
            Format::Text => LogFormat::Text,
        }),
    };
    match args.command.unwrap_or(Command::Serve { last_good: None }) {
        Command::Check { connect: false } => check(&options),
        Command::Schema => {
            out(&(serde_json::to_string_pretty(&config::schema::schema())
                .expect("our own values")
                + "\n"));
            ExitCode::SUCCESS
        }
        Command::Key { command: KeyCommand::New { name } } => key_new(&name),
        command => match runtime() {
            Ok(runtime) => {
                let code = runtime.block_on(run(command, options, handed));
                // A blocked read of stdin must not hold up the end.
                runtime.shutdown_background();
                code
            }
            Err(e) => failed(EXIT_START, &format!("the runtime cannot be started: {e}")),
        },
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

async fn run(command: Command, mut options: ServeOptions, handed: Handed) -> ExitCode {
    let done = match command {
        Command::Serve { last_good } => {
            let folder = |named: Vec<PathBuf>| named.into_iter().next().unwrap_or_default();
            options.last_good = last_good.map(folder);
            app::serve(options, handed, say).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Plan { file, json, connect, admin } => {
            app::plan::plan(options, file, connect, admin).await.map(|report| {
                if json {
                    let text = serde_json::to_string_pretty(&report).expect("our own values");
                    out(&(text + "\n"));
                } else {
                    out(&plan::told(&report, color()));
                }
                match report.verdict {
                    Verdict::Unchanged | Verdict::Applies => ExitCode::SUCCESS,
                    Verdict::Refused => ExitCode::from(EXIT_REFUSED),
                    Verdict::Broken => ExitCode::from(EXIT_PROBLEM),
                }
            })
        }
        Command::Stdio { consumer, elsewhere } => match elsewhere.options() {
            Ok(None) => app::serve_stdio(options, consumer).await,
            Ok(Some(bridged)) => {
                app::connect(bridged, options.log_format.unwrap_or(LogFormat::Text)).await
            }
            Err(text) => Err(AppError::Config(text)),
        }
        .map(|()| ExitCode::SUCCESS),
        Command::Check { .. } => app::probe(options).await.map(|(upstreams, findings)| {
            out(&render::upstreams(&upstreams, color()));
            tell(&findings);
            let fine =
                |u: &UpstreamReport| matches!(u.state.as_str(), "ready" | "dormant" | "disabled");
            let bad = findings.problems() > 0 || !upstreams.iter().all(fine);
            if bad { ExitCode::from(EXIT_PROBLEM) } else { ExitCode::SUCCESS }
        }),
        Command::Catalog { json, consumer } => {
            app::catalog(options, consumer).await.map(|report| {
                if json {
                    let text = serde_json::to_string_pretty(&report).expect("our own values");
                    out(&(text + "\n"));
                } else {
                    out(&render::catalog(&report, color()));
                }
                ExitCode::SUCCESS
            })
        }
        Command::Call { name, arguments, consumer } => {
            app::call(options, consumer, name, arguments).await.map(|report| {
                out(&(report.body + "\n"));
                if report.failed { ExitCode::from(EXIT_PROBLEM) } else { ExitCode::SUCCESS }
            })
        }
        Command::Why { consumer, tool, json, admin } => {
            app::why::why(&options, admin, &consumer, &tool).await.map(|(body, answer)| {
                out(&if json { body } else { why::why(&answer) });
                ExitCode::from(if answer.callable { 0 } else { EXIT_PROBLEM })
            })
        }
        Command::Schema | Command::Key { .. } => unreachable!("handled without a runtime"),
    };
    done.unwrap_or_else(|e| match e {
        AppError::Config(text) | AppError::Unknown(text) => failed(EXIT_PROBLEM, &text),
        AppError::Start(text) => failed(EXIT_START, &text),
    })
}

fn check(options: &ServeOptions) -> ExitCode {
    match app::check(options) {
        Ok((config, findings)) => {
            if findings.problems() == 0 {
                out(&render::checked(&options.config.display().to_string(), &config));
            }
            tell(&findings);
            ExitCode::from(if findings.problems() == 0 { 0 } else { EXIT_PROBLEM })
        }
        Err(e) => failed(EXIT_PROBLEM, &e.to_string()),
    }
}

fn tell(findings: &Findings) {
    let count = |n: usize, what: &str| {
        let s = if n == 1 { "" } else { "s" };
        (n > 0).then(|| format!("{n} {what}{s}"))
    };
    let counts: Vec<String> =
        [count(findings.problems(), "problem"), count(findings.warnings(), "warning")]
            .into_iter()
            .flatten()
            .collect();
    if !counts.is_empty() {
        say(&format!("{}\n{}", findings.told(), counts.join(", ")));
    }
}

fn key_new(name: &str) -> ExitCode {
    if let Err(what) = config::consumer_name(name) {
        return failed(EXIT_PROBLEM, &what);
    }
    let key = new_key();
    let digest = ConsumerKey::of(key.expose()).to_text();
    out(&format!("{}\n", key.expose()));
    say(&format!(
        "The key above is shown once and kept nowhere. Paste this into upstreams.toml:\n\n\
         [consumers.{name}]\nkey = \"{digest}\"\n"
    ));
    ExitCode::SUCCESS
}

// Whether stdout is a terminal whose user did not opt out of colour (no-color.org).
fn color() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

// A closed pipe (`weir catalog | head`) is no reason to shout.
fn out(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}

fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
    let _ = std::io::stderr().write_all(b"\n");
}

fn failed(code: u8, text: &str) -> ExitCode {
    say(text);
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }
}
