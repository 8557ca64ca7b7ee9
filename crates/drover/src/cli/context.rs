//! Where the server is and who is asking: flags over environment over the client's configuration file.

use super::output::{Format, Output};
use super::{Failure, Global};
use drover_api::client::{Client, ClientConfig};
use serde::Deserialize;
use std::io::{ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};

const SERVER_DEFAULT: &str = "https://127.0.0.1:7443";
/// Longest configuration, token or certificate file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The client's configuration file. Relative paths are relative to it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientFile {
    server: Option<String>,
    ca_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

/// What every client verb needs.
pub struct Context {
    pub client: Client,
    pub output: Output,
}

impl Context {
    pub fn new(global: &Global) -> Result<Self, Failure> {
        let config = client_config(global, default_path().as_deref())?;
        Ok(Self { client: Client::new(&config)?, output: output(global) })
    }
}

pub fn output(global: &Global) -> Output {
    let wanted = !global.no_color && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let colour = wanted && global.output == Format::Table && std::io::stdout().is_terminal();
    Output { format: global.output, colour }
}

fn default_path() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(config.join("drover/client.toml"))
}

/// A file that was named must be there; the default one need not.
fn client_config(global: &Global, default_path: Option<&Path>) -> Result<ClientConfig, Failure> {
    let file = match (&global.config, default_path) {
        (Some(path), _) => read_client_file(path)?,
        (None, Some(path)) if path.exists() => read_client_file(path)?,
        (None, _) => ClientFile::default(),
    };
    let server = global.server.clone().or(file.server).unwrap_or_else(|| SERVER_DEFAULT.to_owned());
    let ca_file = global.ca_file.clone().or(file.ca_file);
    let token_file = global.token_file.clone().or(file.token_file);
    if ca_file.is_none() && server.starts_with("https:") {
        return Err(Failure::Usage(format!(
            "no CA certificate is known for {server}: name the client.toml that the server wrote into its data \
             directory with --config, or its pki/ca.crt with --ca-file"
        )));
    }
    Ok(ClientConfig {
        server,
        ca_pem: ca_file.as_deref().map(read).transpose()?,
        token: token_file.as_deref().map(read).transpose()?,
    })
}

fn read_client_file(path: &Path) -> Result<ClientFile, Failure> {
    let mut file: ClientFile = toml::from_str(&read(path)?)
        .map_err(|error| Failure::Usage(format!("{}: {}", path.display(), error.to_string().trim_end())))?;
    let base = path.parent().unwrap_or(Path::new("."));
    for relative in [&mut file.ca_file, &mut file.token_file].into_iter().flatten() {
        *relative = base.join(&relative);
    }
    Ok(file)
}

/// A small text file.
pub fn read(path: &Path) -> Result<String, Failure> {
    let error = |source| Failure::File { path: path.display().to_string(), what: "read", source };
    let size = std::fs::metadata(path).map_err(error)?.len();
    if size > FILE_BYTES_MAX {
        return Err(error(std::io::Error::new(ErrorKind::FileTooLarge, format!("it is {size} bytes long"))));
    }
    std::fs::read_to_string(path).map_err(error)
}

/// A file that only its owner can read, made new: for secrets.
pub fn write_secret(path: &Path, text: &str) -> Result<(), Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let error = |source| Failure::File { path: path.display().to_string(), what: "written", source };
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(error)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn token() -> String {
        format!("drover_ops_{}\n", "0a".repeat(32))
    }

    #[test]
    fn flags_come_before_the_file_and_its_paths_are_relative_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        std::fs::write(&path, "server = \"https://a:1\"\nca_file = \"ca.pem\"\ntoken_file = \"op.token\"\n").unwrap();
        std::fs::write(dir.path().join("ca.pem"), "CA").unwrap();
        std::fs::write(dir.path().join("op.token"), token()).unwrap();
        let from_file = client_config(&Global::default(), Some(&path)).unwrap();
        assert_eq!((from_file.server.as_str(), from_file.ca_pem.as_deref()), ("https://a:1", Some("CA")));
        assert_eq!(from_file.token, Some(token()));
        let global = Global { config: Some(path), server: Some("https://b:2".to_owned()), ..Global::default() };
        assert_eq!(client_config(&global, None).unwrap().server, "https://b:2");
    }

    #[test]
    fn a_configuration_that_can_not_work_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        let failure = |text: &str| {
            std::fs::write(&path, text).unwrap();
            client_config(&Global { config: Some(path.clone()), ..Global::default() }, None).unwrap_err().line()
        };
        assert!(failure("").contains("no CA certificate is known for https://127.0.0.1:7443"));
        assert!(failure("sever = \"x\"").contains("unknown field `sever`"));
        let missing = failure("ca_file = \"/no/ca.pem\"");
        assert!(missing.starts_with("/no/ca.pem can't be read: No such file"), "{missing}");
        let global = Global { config: Some(dir.path().join("none.toml")), ..Global::default() };
        assert!(client_config(&global, None).unwrap_err().line().contains("none.toml can't be read"));
    }

    #[test]
    fn a_secret_is_written_for_its_owner_only_and_never_over_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write_secret(&path, "x").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_secret(&path, "y").unwrap_err().line().contains("File exists"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x");
    }
}
