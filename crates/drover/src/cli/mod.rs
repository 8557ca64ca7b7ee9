//! The command line: `drover <noun> <verb>`.
//!
//! ```text
//!  mod.rs       the grammar, and from arguments to an exit code
//!  context.rs   which server, which token            failure.rs  errors and exit codes
//!  output.rs    tables, JSON, YAML                   show.rs     how values read
//!  values.rs    how values are typed                 wait.rs     waiting, with progress
//!  host.rs vm.rs image.rs tenant.rs token.rs plan.rs migration.rs policy.rs events.rs cluster.rs
//!  network.rs security_group.rs port.rs rule.rs   one noun each; attributes.rs   what `host set` takes
//!  console.rs   the terminal of `vm console`         daemon.rs   `server` and `agent`
//!  what_if.rs   `plan --from`                   input.rs    files that may be large or compressed
//!  load.rs      `load record`
//!  sim.rs       `sim`                          replay.rs   `sim replay`
//! ```
//!
//! Standard output carries data only; remarks, progress and errors go to standard error.

mod attributes;
mod cluster;
mod confirm;
mod console;
mod context;
mod daemon;
mod events;
mod failure;
mod host;
mod image;
mod input;
mod load;
mod migration;
mod network;
mod output;
mod plan;
mod policy;
mod port;
mod replay;
mod rule;
mod security_group;
pub mod show;
mod sim;
mod tenant;
mod token;
mod values;
mod vm;
mod wait;
mod what_if;

pub use failure::{Exit, Failure};

use clap::{Args, CommandFactory, Parser, Subcommand};
use context::Context;
use output::Format;
use std::path::PathBuf;
use std::process::ExitCode;

const AFTER_HELP: &str = "\
Examples:
  drover --config /var/lib/drover/server/client.toml host ls
  drover vm create web-1 --tenant acme --image tiny --memory 128M --wait
  drover vm migrate acme/web-1 --to h2 --wait
  drover explain vm/acme/web-1
  drover events --follow -o json

A vm is named by its id (vm-abcdefghijkl), by its name (web-1), or, by operators, as TENANT/NAME.

Exit codes:
  0  done
  1  refused by the server, or failed
  2  bad usage or bad configuration
  3  no trustworthy server answered
  4  not authorised: no valid token, or its role does not allow it
  5  not found
  6  conflict: not as things stand now, or changed since
  7  waiting took longer than --timeout";

/// A self-driving virtual infrastructure manager: runs virtual servers on Linux hosts and live-migrates
/// them to keep them alive, balanced and cheap.
#[derive(Debug, Parser)]
#[command(name = "drover", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Tokens are read from files only: what is on a command line can be seen by everybody on the machine.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The server's address [default: https://127.0.0.1:7443]
    #[arg(long, global = true, value_name = "URL", env = "DROVER_SERVER", hide_env_values = true)]
    server: Option<String>,
    /// File that holds the API token
    #[arg(long, global = true, value_name = "FILE", env = "DROVER_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<PathBuf>,
    /// The cluster's CA certificate (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "DROVER_CA_FILE", hide_env_values = true)]
    ca_file: Option<PathBuf>,
    /// Client configuration (TOML: server, ca_file, token_file) [default: ~/.config/drover/client.toml]
    #[arg(long, global = true, value_name = "FILE", env = "DROVER_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// A table for people (it may change between versions), or exactly what is on the wire
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// No colours (also with NO_COLOR set)
    #[arg(long, global = true)]
    no_color: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the control plane
    Server(daemon::Server),
    /// Run a host's agent (as root)
    Agent(daemon::Agent),

    /// Physical servers
    #[command(subcommand)]
    Host(host::Verb),
    /// Virtual servers
    #[command(subcommand)]
    Vm(vm::Verb),
    /// What vms are created from
    #[command(subcommand)]
    Image(image::Verb),
    /// Tenants' overlay networks
    #[command(subcommand)]
    Network(network::Verb),
    /// What may reach vms, and what they may reach
    #[command(subcommand)]
    SecurityGroup(security_group::Verb),
    /// Interfaces of hosts on overlay networks
    #[command(subcommand)]
    Port(port::Verb),
    /// Which vms stay together or apart, and on which hosts
    #[command(subcommand)]
    Rule(rule::Verb),
    /// Cloud consumers
    #[command(subcommand)]
    Tenant(tenant::Verb),
    /// API tokens
    #[command(subcommand)]
    Token(token::Verb),
    /// What the cluster decided to do, and why; with --from, what a described cluster would do
    #[command(after_help = what_if::AFTER_HELP, arg_required_else_help = true)]
    Plan(what_if::Plan),
    /// Live migrations
    #[command(subcommand)]
    Migration(migration::Verb),
    /// What the cluster decides by
    #[command(subcommand)]
    Policy(policy::Verb),

    /// What vms want, over time
    #[command(subcommand)]
    Load(load::Verb),

    /// The cluster as a whole: scenario, mode, counts
    Status,
    /// What happened
    Events(events::Events),
    /// Why something is as it is, and why not otherwise
    Explain(cluster::Explain),
    /// Follow the cluster on the whole screen (q ends, tab and arrows scroll)
    Top,
    /// Whose token this is
    Whoami,
    /// Print shell completions
    #[command(after_help = "Example:\n  drover completions bash > /etc/bash_completion.d/drover")]
    Completions { shell: clap_complete::Shell },
    /// Print the API's OpenAPI document
    Openapi,
    /// Simulate a virtual fleet under faults, from a seed; or replay recorded load
    Sim(sim::Sim),
}

/// Runs the process' command line. Everything but data goes to standard error.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are no errors; their output may meet a closed pipe, which is none either.
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            return error.print().map_or(Exit::Ok, |()| exit).into();
        }
    };
    let Cli { global, command } = cli;
    if let Command::Sim(sim) = command {
        return sim.run(context::output(&global));
    }
    ended(run(Cli { global, command }))
}

/// The exit code, after an error is said.
fn ended(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            if !matches!(failure, Failure::OutputClosed) {
                eprintln!("error: {}", failure.line());
            }
            failure.exit().into()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Server(server) => server.run(),
        Command::Agent(agent) => agent.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "drover", &mut script);
            context::output(&cli.global).print(&String::from_utf8_lossy(&script))
        }
        Command::Plan(what_if::Plan { what_if, verb: None }) => what_if.run(context::output(&cli.global)),
        Command::Openapi => context::output(&cli.global).print(&(drover_server::openapi_json() + "\n")),
        verb => {
            let context = Context::new(&cli.global)?;
            daemon::runtime(daemon::Threads::One)?.block_on(client_verb(&context, verb))
        }
    }
}

async fn client_verb(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Host(verb) => host::run(context, verb).await,
        Command::Vm(verb) => vm::run(context, verb).await,
        Command::Image(verb) => image::run(context, verb).await,
        Command::Network(verb) => network::run(context, verb).await,
        Command::SecurityGroup(verb) => security_group::run(context, verb).await,
        Command::Port(verb) => port::run(context, verb).await,
        Command::Rule(verb) => rule::run(context, verb).await,
        Command::Tenant(verb) => tenant::run(context, verb).await,
        Command::Token(verb) => token::run(context, verb).await,
        Command::Plan(what_if::Plan { what_if, verb: Some(verb) }) => {
            what_if.refuse()?;
            plan::run(context, verb).await
        }
        Command::Migration(verb) => migration::run(context, verb).await,
        Command::Policy(verb) => policy::run(context, verb).await,
        Command::Load(verb) => load::run(context, verb).await,
        Command::Status => cluster::status(context).await,
        Command::Events(events) => events.run(context).await,
        Command::Explain(explain) => explain.run(context).await,
        Command::Top => Ok(crate::top::live::run(&context.client, !context.output.colour).await?),
        Command::Whoami => token::whoami(context).await,
        Command::Server(_)
        | Command::Agent(_)
        | Command::Completions { .. }
        | Command::Openapi
        | Command::Plan(what_if::Plan { verb: None, .. })
        | Command::Sim(_) => {
            unreachable!("run() takes the verbs that need no server")
        }
    }
}

/// The client's clock, for ages in tables.
fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
pub(crate) mod tests;
