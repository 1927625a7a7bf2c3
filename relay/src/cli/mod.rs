//! The command line: what can be typed (`arguments`), and which module does it (`command`).
//!
//! Promises that every error ends in one of three exit codes: 0 done, 1 failed at run time or
//! problems found, 2 wrong usage or settings. Printing is done in this folder and nowhere else. Called by
//! `main` alone.

mod arguments;
mod ask;
mod command;
mod listed;
mod output;
mod signal;
mod usage;
mod waited;

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use outbox_migrations::grants::{Grant, INBOX_OPERATOR, OPERATOR};

#[cfg(test)]
pub(crate) use self::command::resume::{Decision as Resume, Here, between, decided};
pub use self::output::print;
use self::{
    arguments::{Cli, Command, of_process, one_of, quiet, relay_settings, sources},
    command::{check, dead_letters, demo, inbox, migrate, resume, status},
    output::tell,
};
use crate::{
    allocator,
    config::{self, Config, Overrides, Problems, Purpose},
    daemon,
    dead_letter::{DeadLetterError, operator::OperatorError},
    logging,
    postgres::{
        catalog::{altered, blame},
        sql,
    },
    rights,
};

/// How a command ended when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// It did its work, and what it found is bad.
    ProblemsFound,
}

impl From<bool> for Outcome {
    fn from(all_is_well: bool) -> Self {
        if all_is_well { Outcome::Done } else { Outcome::ProblemsFound }
    }
}

/// One thread reads the WAL while the other delivers; the broker's client has threads of its own.
const WORKERS: usize = 2;

/// The process: a runtime, a command, an exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(usage::explain(&error, std::env::args_os())),
    };
    allocator::use_one_heap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        // While it has one thread for work that blocks, a system without a further one is waited for. Without any,
        // the runtime panics.
        .thread_keep_alive(Duration::MAX)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            output::print_error(&anyhow::Error::new(error).context("can't start"));
            return ExitCode::from(1);
        }
    };
    let code = runtime.block_on(run(cli));
    // A name lookup that hangs must not hold up the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

/// Runs a command line to its end. The one place where errors become exit codes.
async fn run(cli: Cli) -> ExitCode {
    let json = cli.command.prints_json();
    match Box::pin(dispatch(cli)).await {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::ProblemsFound) => ExitCode::from(1),
        Err(error) => {
            match json {
                true => output::print_error_as_json(&error),
                false => output::print_error(&error),
            }
            // Also where a module found the problem later than `config`.
            ExitCode::from(if error.chain().any(|e| e.is::<Problems>()) { 2 } else { 1 })
        }
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<Outcome> {
    let file = cli.config;
    let stray = config::misnamed(&config::Environment::of_process());
    // `run` has a log for it, and `check` a finding, once the settings are read.
    if !matches!(cli.command, Command::Run(_) | Command::Check { .. }) {
        warn_of(&stray);
    }
    match cli.command {
        Command::Run(flags) => {
            let configs = relay_settings(file, &flags).inspect_err(|_| warn_of(&stray))?;
            logging::init(&of_process(&configs)?.log);
            for (name, meant) in &stray {
                tracing::warn!(
                    name,
                    meant,
                    "a variable of the environment is no setting and is ignored"
                );
            }
            Box::pin(daemon::run(configs, signal::stop_on_signal()?)).await?;
            Ok(Outcome::Done)
        }
        Command::Check { flags, json } => {
            let configs = relay_settings(file, &flags).inspect_err(|_| warn_of(&stray))?;
            logging::init(&quiet(of_process(&configs)?));
            let mut findings = check::stray(&stray);
            for config in &configs {
                let found = check::run(config, &config.parts()?).await;
                findings.extend(found.into_iter().map(|finding| finding.of(config.route.as_ref())));
            }
            // Its tables' texts are printable, and JSON is exact.
            print(&output::findings(&findings, json));
            Ok(check::passed(&findings).into())
        }
        Command::Migrate { set, print: true, .. } => {
            print(&set.print());
            Ok(Outcome::Done)
        }
        Command::Migrate { postgres, set, print: false } => {
            let flags =
                Overrides::default().with("--postgres", "postgres.url", postgres.as_deref());
            let config = config::load(&sources(file, flags), Purpose::Database)?;
            logging::init(&quiet(&config));
            let migrated = migrate::run(&config, set).await;
            let migrated = migrated.map_err(|error| with_shortage(&config, error))?;
            print(&output::migrated(&migrated, set));
            Ok(Outcome::Done)
        }
        Command::Status { admin, json } => {
            let flags = Overrides::default().with("--admin", "admin.listen", admin.as_deref());
            let sources = sources(file, flags);
            let configs = config::load_relays(&sources, Purpose::Admin, |_| Vec::new())?;
            Ok(status::run(&configs, json).await?.into())
        }
        Command::Resume { flags, decision } => {
            let config = one_of(relay_settings(file, &flags)?, decision.route.as_deref())?;
            logging::init(&quiet(&config));
            let yes = decision.yes;
            let route = config.route.clone();
            let for_route = |text: &str| {
                route.as_ref().map_or_else(|| text.to_owned(), |it| it.in_commands(text))
            };
            let agreed = |question: &str| {
                let question = &for_route(question);
                if !yes {
                    return ask::ask(&format!("{question} Continue?"));
                }
                // Whoever agreed in advance is told to what.
                output::eprint(question);
                Ok(true)
            };
            let resumed = resume::run(&config, decision.decision()?, agreed).await;
            let grants = config.parts()?.sink.grants();
            let outcome = explained(&config, &grants, resumed).await?;
            tell(&outcome.to_string());
            Ok(Outcome::Done)
        }
        Command::DeadLetters { postgres, name, route, json, action } => {
            let flags = Overrides::default()
                .with("--postgres", "postgres.url", postgres.as_deref())
                .with("--name", "name", name.as_deref());
            let sources = sources(file, flags);
            let config = match (&name, &route) {
                // Whoever names the relay needs no route.
                (Some(_), None) => config::load(&sources, Purpose::Database)?,
                _ => {
                    let configs = config::load_relays(&sources, Purpose::Database, |_| Vec::new())?;
                    one_of(configs, route.as_deref())?
                }
            };
            logging::init(&quiet(&config));
            let done = dead_letters::run(&config, action, json).await;
            explained(&config, OPERATOR, done).await?;
            Ok(Outcome::Done)
        }
        Command::Inbox { postgres, consumer, json, part } => {
            let flags =
                Overrides::default().with("--postgres", "postgres.url", postgres.as_deref());
            let config = config::load(&sources(file, flags), Purpose::Database)?;
            logging::init(&quiet(&config));
            let done = inbox::run(&config, part, consumer, json).await;
            explained(&config, INBOX_OPERATOR, done).await?;
            Ok(Outcome::Done)
        }
        Command::Config(flags) => {
            let configs = relay_settings(file, &flags)?;
            print(&config::print(&configs));
            Ok(Outcome::Done)
        }
        Command::Demo(arguments) => Ok(demo::run(arguments).await?.into()),
    }
}

/// Variables that are no settings, on standard error: a setting that is missing may be one of them.
fn warn_of(stray: &[(String, String)]) {
    for (name, meant) in stray {
        output::eprint(&format!("warning: {name} is no setting and is ignored: name it {meant}"));
    }
}

/// The same error, with what to type where the server, or this process, has run out of something.
fn with_shortage(config: &Config, error: anyhow::Error) -> anyhow::Error {
    let settings = config.connect().ok();
    match settings.and_then(|settings| daemon::against_shortage(&error, &settings)) {
        Some(remedy) => error.context(remedy),
        None => error,
    }
}

/// An error for want of a right says which, and what to type.
async fn explained<T>(
    config: &Config,
    grants: &[Grant],
    done: anyhow::Result<T>,
) -> anyhow::Result<T> {
    let Err(error) = done else { return done };
    let error = with_shortage(config, error);
    let answer = |error: &anyhow::Error| {
        let causes = &mut error.chain();
        causes.find_map(|it| it.downcast_ref::<tokio_postgres::Error>()?.as_db_error().cloned())
    };
    let Some(answer) = answer(&error).filter(|answer| blame::may_explain(answer.code())) else {
        return Err(error);
    };
    let Ok(session) = sql::connect(&config.connect()?, "outbox-relay rights").await else {
        return Err(error);
    };
    if rights::is_refusal(&error) {
        let meaning = rights::NOTHING_WAS_CHANGED;
        if let Some(halt) = rights::stopping(session.client(), grants, meaning).await? {
            return Err(error.context(halt));
        }
    }
    let is_parking = error.chain().any(|it| it.is::<OperatorError>() || it.is::<DeadLetterError>());
    let tables = rights::tables(grants);
    let found =
        blame::explaining(session.client(), Some(&answer), is_parking, &tables, &config.name).await;
    let Some(found) = found.ok().filter(|found| !found.is_empty()) else {
        return Err(error);
    };
    let (seen, remedy) = altered::in_words(&found);
    let meaning = rights::NOTHING_WAS_CHANGED;
    Err(error.context(format!("{seen}: {meaning}; {remedy}")))
}
