//! Answers requests (HTTP/1.0, RFC 1945): one request a connection, no request body.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | name and boot id |
//! | `GET /stats` | what is set and what was done, as JSON |
//! | `PUT /load?cpu=60&dirty_mib_s=5` | changes the load, then as `/stats` |
//! | `GET /verify` | verifies every page, then as `/stats` |

use crate::memory;
use crate::settings::{DIRTY_MIB_S_MAX, number};
use crate::stats::Shared;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

/// Connections served at once; more wait in the listen queue.
const WORKERS: usize = 4;
const REQUEST_BYTES_MAX: usize = 4_096;
/// For a client that stopped talking or listening. Also the pause after a failed accept.
const CLIENT_WAIT_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, PartialEq, Eq)]
enum Request {
    Root,
    Stats,
    Verify,
    /// What is left out stays as it is.
    Load {
        cpu_percent: Option<u32>,
        dirty_mib_s: Option<u32>,
    },
}

/// Status line and reason for a request that is not answered.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: &'static str,
    why: String,
}

impl Request {
    /// From the request line, without its line end.
    fn parse(line: &str) -> Result<Self, Refusal> {
        let refuse = |status, why: &str| Err(Refusal { status, why: why.to_owned() });
        let mut words = line.split(' ');
        let (Some(method), Some(target), Some(_)) = (words.next(), words.next(), words.next()) else {
            return refuse("400 Bad Request", "write a request line: METHOD TARGET HTTP/1.0");
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        match (method, path) {
            ("GET", "/") => Ok(Self::Root),
            ("GET", "/stats") => Ok(Self::Stats),
            ("GET", "/verify") => Ok(Self::Verify),
            ("PUT", "/load") => Self::parse_load(query).map_err(|why| Refusal { status: "400 Bad Request", why }),
            (_, "/" | "/stats" | "/verify" | "/load") => {
                refuse("405 Method Not Allowed", "GET / /stats /verify, PUT /load")
            }
            _ => refuse("404 Not Found", "there are / /stats /verify /load"),
        }
    }

    fn parse_load(query: &str) -> Result<Self, String> {
        let (mut cpu_percent, mut dirty_mib_s) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("cpu", value)) => cpu_percent = Some(number("cpu", value, 0, 100)?),
                Some(("dirty_mib_s", value)) => {
                    dirty_mib_s = Some(number("dirty_mib_s", value, 0, DIRTY_MIB_S_MAX)?);
                }
                _ => return Err(format!("{pair}: write cpu=PERCENT or dirty_mib_s=MIB")),
            }
        }
        Ok(Self::Load { cpu_percent, dirty_mib_s })
    }
}

pub fn bind(address: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address).map_err(|e| format!("can't listen on {address}: {e}"))
}

/// Serves for ever.
pub fn serve(listener: TcpListener, shared: &Arc<Shared>) {
    let listener = Arc::new(listener);
    for _ in 1..WORKERS {
        let (listener, shared) = (listener.clone(), shared.clone());
        thread::spawn(move || work(&listener, &shared));
    }
    work(&listener, shared);
}

fn work(listener: &TcpListener, shared: &Shared) {
    loop {
        match listener.accept() {
            // A client that went away has nobody left to be told.
            Ok((stream, _)) => drop(answer(stream, shared)),
            Err(_) => thread::sleep(CLIENT_WAIT_MAX),
        }
    }
}

fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_WAIT_MAX))?;
    stream.set_write_timeout(Some(CLIENT_WAIT_MAX))?;
    let (status, kind, body) = match read_request_line(&mut stream)?.and_then(|line| Request::parse(&line)) {
        Ok(request) => respond(request, shared),
        Err(Refusal { status, why }) => (status, "text/plain", format!("{why}\n")),
    };
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())
}

/// Reads up to the end of the head, so that closing does not reset a client that is still sending it.
fn read_request_line(stream: &mut TcpStream) -> std::io::Result<Result<String, Refusal>> {
    let mut head = Vec::with_capacity(512);
    let mut chunk = [0; 512];
    loop {
        let read = stream.read(&mut chunk)?;
        head.extend_from_slice(&chunk[..read]);
        if read == 0 || head.windows(4).any(|w| w == b"\r\n\r\n") || head.windows(2).any(|w| w == b"\n\n") {
            break;
        }
        if head.len() > REQUEST_BYTES_MAX {
            return Ok(Err(Refusal {
                status: "400 Bad Request",
                why: format!("a request head has {REQUEST_BYTES_MAX} bytes at most"),
            }));
        }
    }
    let text = String::from_utf8_lossy(&head);
    Ok(Ok(text.lines().next().unwrap_or_default().to_owned()))
}

fn respond(request: Request, shared: &Shared) -> (&'static str, &'static str, String) {
    match request {
        Request::Root => return ("200 OK", "text/plain", format!("{} {}\n", shared.name, shared.boot_id())),
        Request::Stats => {}
        Request::Verify => memory::verify_all(shared),
        Request::Load { cpu_percent, dirty_mib_s } => {
            if let Some(percent) = cpu_percent {
                shared.cpu_percent.store(percent, Relaxed);
            }
            if let Some(mib_s) = dirty_mib_s {
                shared.dirty_mib_s.store(mib_s, Relaxed);
            }
        }
    }
    ("200 OK", "application/json", shared.to_json())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn requests_are_told_apart() {
        for (line, request) in [
            ("GET / HTTP/1.0", Request::Root),
            ("GET /stats HTTP/1.1", Request::Stats),
            ("GET /verify HTTP/1.0", Request::Verify),
            ("PUT /load?cpu=60&dirty_mib_s=5 HTTP/1.1", Request::Load { cpu_percent: Some(60), dirty_mib_s: Some(5) }),
            ("PUT /load?cpu=0 HTTP/1.1", Request::Load { cpu_percent: Some(0), dirty_mib_s: None }),
        ] {
            assert_eq!(Request::parse(line), Ok(request), "{line}");
        }
    }

    #[test]
    fn a_bad_request_gets_the_status_that_says_so() {
        for (line, status) in [
            ("", "400 Bad Request"),
            ("GET /", "400 Bad Request"),
            ("PUT /load?cpu=101 HTTP/1.0", "400 Bad Request"),
            ("PUT /load?cpus=1 HTTP/1.0", "400 Bad Request"),
            ("POST /load HTTP/1.0", "405 Method Not Allowed"),
            ("GET /etc/passwd HTTP/1.0", "404 Not Found"),
        ] {
            assert_eq!(Request::parse(line).unwrap_err().status, status, "{line}");
        }
    }

    #[test]
    fn a_client_sets_the_load_and_reads_it_back_over_a_socket() {
        let settings = Settings::from_cmdline("drover.name=web-1 drover.ws_mib=1").unwrap();
        let shared = Arc::new(Shared::new(&settings, 1));
        let listener = bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn({
            let shared = shared.clone();
            move || serve(listener, &shared)
        });
        let ask = |line: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        assert!(ask("PUT /load?cpu=7&dirty_mib_s=2 HTTP/1.0").contains("\"cpu_percent\":7,\"dirty_mib_s\":2"));
        assert!(ask("GET /verify HTTP/1.0").contains("\"verified_pages\":256,\"errors\":0"));
        assert!(ask("GET / HTTP/1.0").ends_with("\r\n\r\nweb-1 0000000000000001\n"));
        assert!(ask("GET /nothing HTTP/1.0").starts_with("HTTP/1.0 404 Not Found\r\n"));
    }
}
