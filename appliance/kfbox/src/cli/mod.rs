//! The command line: what can be typed, and where each command lives.

mod box_info;
mod credential;
mod debug;
mod doctor;
mod gpu;
mod image;
mod kubeconfig;
mod logs;
mod pipelines;
mod progress;
mod reset;
mod run;
mod session;
mod token;
mod trust;
mod up;
mod user;

use crate::{
    config::{BoxOptions, DEFAULT_DATA_DIR, UpOptions},
    failure::Failure,
};
pub use doctor::missing as missing_requirements;
pub use up::report;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use std::{path::PathBuf, process::ExitCode};

/// Kubeflow on one machine: one program, no Docker, no download.
#[derive(Parser)]
#[command(name = "kfbox", version, about, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    common: BoxOptions,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  kfbox up                                  start the platform and wait until it is ready
  kfbox image load python-3.11.oci.tar      make an image available without a registry
  kfbox kubeconfig --merge                  let kubectl reach it
  kfbox run pipeline.py -p epochs=3         run a pipeline and follow it
  kfbox kubeconfig --oidc -o ann.yaml       for somebody else: they sign in themselves
  kfbox token                               a bearer token for the kfp SDK
  kfbox user add ann@example.com            let somebody else in, with a namespace of their own

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not running, 4 data directory in use,
5 address in use, 6 data from a newer version, 7 the machine lacks something, 8 wrong configuration";

#[derive(Subcommand)]
enum Command {
    /// Start the platform (in the background) and wait until it is ready
    Up(UpArgs),
    /// Stop the platform and the containers of its pods
    Down(DownArgs),
    /// What runs, where it listens, and how it is
    Status(StatusArgs),
    /// Check that this machine has what kfbox needs, and say how to get what is missing
    Doctor(DoctorArgs),
    /// The daemon's log
    Logs(LogsArgs),
    /// Print, write or merge the credentials for kubectl
    Kubeconfig(KubeconfigArgs),
    /// Sign in through the box and print a credential, as kubectl asks of a plugin
    Credential(CredentialArgs),
    /// Let this machine's programs trust the certificate that the box made for itself (`kfbox up --tls`)
    Trust(TrustArgs),
    /// Create, list or revoke personal tokens for programs: the kfp SDK, curl, kubectl
    Token(TokenArgs),
    /// S3 credentials of a namespace, for boto3 and the like
    Credentials(CredentialsArgs),
    /// Container images on this box
    #[command(subcommand)]
    Image(ImageCommand),
    /// Show the machine's GPUs: who has them, and why one cannot be had
    Gpu {
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// People who may sign in
    #[command(subcommand)]
    User(UserCommand),
    /// Browsers that are signed in
    #[command(subcommand)]
    Session(SessionCommand),
    /// Run a pipeline (a Python file or a compiled package), follow it, and end as it ends
    Run(RunArgs),
    /// Pipelines, their runs, experiments and recurring runs
    #[command(visible_alias = "pipeline", after_help = pipelines::EXAMPLES)]
    Pipelines(pipelines::PipelinesArgs),
    /// Remove the box: containers, network, firewall rules and all data
    Reset(ResetArgs),
    /// The version, and what it speaks
    Version,
    /// Completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Args)]
struct UpArgs {
    #[command(flatten)]
    options: UpOptions,
    /// Stay in the foreground and log to standard error, as a service manager wants
    #[arg(long)]
    foreground: bool,
    /// How long to wait for readiness, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
    /// Where to leave the reason if the daemon cannot start
    #[arg(long, hide = true)]
    error_file: Option<PathBuf>,
}

#[derive(Args)]
struct DownArgs {
    /// Leave the containers running; the next `up` takes them over
    #[arg(long)]
    keep_pods: bool,
}

#[derive(Args)]
struct StatusArgs {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Args)]
struct DoctorArgs {
    #[command(flatten)]
    options: UpOptions,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Args)]
struct LogsArgs {
    /// Keep printing as lines come
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines to begin with
    #[arg(short = 'n', long, default_value_t = 200)]
    tail: usize,
}

#[derive(Args)]
struct KubeconfigArgs {
    /// Write it to a file of its own
    #[arg(short, long, value_name = "FILE", conflicts_with = "merge")]
    output: Option<PathBuf>,
    /// Merge it into a kubeconfig (default: $KUBECONFIG, else ~/.kube/config) and make it current
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    merge: Option<PathBuf>,
    /// Without the administrator's key: whoever uses it signs in as themselves, in a browser
    #[arg(long)]
    oidc: bool,
}

#[derive(Args)]
struct CredentialArgs {
    /// The box's issuer, such as https://kubeflow.lab.example/dex
    #[arg(long, value_name = "URL")]
    issuer: url::Url,
    /// As whom to ask
    #[arg(long, default_value = kfbox_gateway::COMMAND_LINE_CLIENT, value_name = "ID")]
    client_id: String,
    /// Certificates to trust for it besides the machine's: PEM in base64
    #[arg(long, value_name = "BASE64")]
    ca_data: Option<String>,
    /// Where sign-ins are kept [default: $KUBECACHEDIR, else ~/.kube/cache, and there kfbox-oidc]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Forget the sign-in, here and at the box
    #[arg(long)]
    sign_out: bool,
}

#[derive(Args)]
struct TrustArgs {
    /// No longer trust it
    #[arg(long)]
    remove: bool,
    /// Print the certificate instead
    #[arg(long, conflicts_with = "remove")]
    print: bool,
    /// Print shell variables for programs that bring their own certificates, such as Python's
    #[arg(long, conflicts_with_all = ["remove", "print"])]
    env: bool,
    /// Another root than /, as for an image that is being built
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct TokenArgs {
    #[command(subcommand)]
    command: Option<TokenCommand>,
    #[command(flatten)]
    new: NewTokenArgs,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Create one and print it: the only time that it can be read (what `kfbox token` alone does too)
    Create(NewTokenArgs),
    /// The tokens that hold, newest first, without their secrets
    #[command(visible_alias = "ls")]
    List {
        /// Only this person's
        #[arg(long, value_name = "EMAIL")]
        user: Option<String>,
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// End tokens at once, by their ids
    #[command(visible_alias = "rm")]
    Revoke {
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Args)]
struct NewTokenArgs {
    /// Whose token [default: the first user]
    #[arg(long, value_name = "EMAIL")]
    user: Option<String>,
    /// What it is for, as the list shows it
    #[arg(long, default_value = "cli")]
    name: String,
    /// How long it holds: 90m, 12h, 30d
    #[arg(long, default_value = "12h", value_parser = token::parse_duration)]
    expires: std::time::Duration,
    /// Where it is good: the web routes, the Kubernetes API [default: both]
    #[arg(long, value_enum, value_delimiter = ',')]
    scope: Vec<TokenScope>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TokenScope {
    Platform,
    Kubernetes,
}

#[derive(Args)]
struct CredentialsArgs {
    /// Whose artifacts [default: the first user's namespace]
    #[arg(short, long)]
    namespace: Option<String>,
    /// How to print it: shell variables, or JSON
    #[arg(short, long, value_enum, default_value_t = CredentialOutput::Env)]
    output: CredentialOutput,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CredentialOutput {
    Env,
    Json,
}

#[derive(Subcommand)]
enum ImageCommand {
    /// Store an image from an OCI archive, an OCI layout or a `docker save` file
    #[command(visible_alias = "import")]
    Load {
        /// The archive or layout
        path: PathBuf,
        /// Store it under this name instead of the archive's
        #[arg(long)]
        name: Option<String>,
    },
    /// Fetch an image from its registry
    Pull { name: String },
    /// The images stored here
    #[command(visible_alias = "ls")]
    List {
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Remove an image's name, and its content when nothing else needs it
    #[command(visible_alias = "rm")]
    Remove { names: Vec<String> },
}

#[derive(Subcommand)]
enum UserCommand {
    /// Add a person, with a namespace; the password is asked for, or read from standard input
    Add {
        email: String,
        /// A group of theirs, as role bindings name it (may be repeated)
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        /// Make them an administrator of the whole box
        #[arg(long)]
        admin: bool,
    },
    /// Who may sign in
    #[command(visible_alias = "ls")]
    List {
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Set a person's password; it is read from standard input. Their sessions end
    Passwd { email: String },
    /// Replace a person's groups; none are left when none is given
    Groups {
        email: String,
        groups: Vec<String>,
        /// Administrator of the whole box
        #[arg(long)]
        admin: bool,
    },
    /// Shut a person out at once, keeping all that is theirs
    Disable { email: String },
    /// Let a disabled person in again
    Enable { email: String },
    /// Remove a person; their namespace and its data stay
    #[command(visible_alias = "rm")]
    Remove { email: String },
    /// Add people from a Dex configuration's staticPasswords: bcrypt and argon2 hashes go on working
    Import {
        /// Dex's configuration, or the ConfigMap that holds it; - for standard input
        file: PathBuf,
    },
}

#[derive(Subcommand)]
enum SessionCommand {
    /// Who is signed in, since when, and from where
    #[command(visible_alias = "ls")]
    List {
        /// Only this person's
        #[arg(long, value_name = "EMAIL")]
        user: Option<String>,
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// End sessions at once, by their ids
    #[command(visible_alias = "rm")]
    Revoke {
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// A parameter of the pipeline; lists and structs in JSON (may be repeated)
    #[arg(short, long = "parameter", value_name = "NAME=VALUE")]
    parameters: Vec<String>,
    /// What the run is called [default: the pipeline's name and the time]
    #[arg(long)]
    name: Option<String>,
    /// The experiment it belongs to; made if there is none of this name [default: Default]
    #[arg(long)]
    experiment: Option<String>,
    /// Where it runs [default: the user's namespace]
    #[arg(short, long)]
    namespace: Option<String>,
    /// Whose run it is [default: the first user]
    #[arg(long, value_name = "EMAIL")]
    user: Option<String>,
    /// Start it, print its id, and do not wait
    #[arg(short, long)]
    detach: bool,
    /// Show the steps' states, not their logs
    #[arg(short, long)]
    quiet: bool,
}

/// A pipeline on disk.
#[derive(Args)]
struct SourceArgs {
    /// A pipeline's Python file, which is compiled by the kfp SDK, or a compiled package (YAML)
    file: PathBuf,
    /// Of several pipelines in the Python file, this function's
    #[arg(long)]
    function: Option<String>,
    /// The Python that has the kfp SDK
    #[arg(long, default_value = "python3", env = "KFBOX_PYTHON")]
    python: PathBuf,
}

#[derive(Args)]
struct DebugArgs {
    /// The run's id, as `kfbox run -d` prints it and the pages show it
    run: String,
    /// The step's name; of several with that name (a loop's) the one that failed, or a task id
    step: String,
    /// What to start in it
    #[arg(long, default_value = "sh")]
    shell: String,
    /// How long it may stay at most, should this command be cut off: 90m, 12h
    #[arg(long, default_value = "8h", value_parser = token::parse_duration)]
    deadline: std::time::Duration,
}

#[derive(Args)]
struct ResetArgs {
    #[command(flatten)]
    options: UpOptions,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Parses, runs, and turns an error into its text and exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}", Failure::render(&error));
            ExitCode::from(Failure::exit_code(&error))
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { common, command } = cli;
    // Client commands know the box by its directory, from the flag, the environment or the file.
    let data_dir = || -> anyhow::Result<PathBuf> {
        match &common.data_dir {
            Some(dir) => Ok(dir.clone()),
            None if common.config.is_none() && !std::path::Path::new(crate::config::DEFAULT_CONFIG_FILE).exists() => {
                Ok(DEFAULT_DATA_DIR.into())
            }
            None => Ok(crate::config::Config::resolve(&common, &UpOptions::default())?.data_dir),
        }
    };
    match command {
        Command::Up(args) => up::run(&common, &args),
        Command::Down(args) => client(up::down(data_dir()?, args.keep_pods)),
        Command::Status(args) => client(box_info::status(data_dir()?, args.output == Output::Json)),
        Command::Doctor(args) => client(doctor::run(common.clone(), args.options, args.output == Output::Json)),
        Command::Logs(args) => client(logs::run(data_dir()?, args.follow, args.tail)),
        Command::Kubeconfig(args) => client(kubeconfig::run(data_dir()?, args.output, args.merge, args.oidc)),
        Command::Credential(args) => client(credential::run(args)),
        Command::Trust(args) => trust::run(&data_dir()?, &args),
        Command::Token(args) => client(token::run(data_dir()?, args)),
        Command::Credentials(args) => {
            client(token::credentials(data_dir()?, args.namespace, args.output == CredentialOutput::Json))
        }
        Command::Image(command) => client(image::run(data_dir()?, command)),
        Command::Gpu { output } => client(gpu::run(data_dir()?, output)),
        Command::User(command) => client(user::run(data_dir()?, command)),
        Command::Session(command) => client(session::run(data_dir()?, command)),
        Command::Run(args) => client(run::run(data_dir()?, args)),
        Command::Pipelines(args) => client(pipelines::run(data_dir()?, args)),
        Command::Reset(args) => reset::run(&common, &args.options, args.yes),
        Command::Version => {
            box_info::version();
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "kfbox", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Runs a command that only talks to the daemon.
fn client(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// A value for a query.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                char::from(b).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Seconds since 1970, as tables show them.
fn moment(seconds: i64) -> String {
    let moment = chrono::DateTime::from_timestamp(seconds, 0).unwrap_or_default();
    moment.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
