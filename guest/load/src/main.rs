//! `guest-load`: the program that vms of the demo and of the end-to-end tests run.
//!
//! It makes a known load and proves that the vm survived what was done to it: it keeps each virtual
//! processor busy for a set share of the time, rewrites memory at a set rate, checks its memory page
//! by page against a pattern that only this boot could have written, answers HTTP, and sends a
//! numbered tick ten times a second from which a receiver sees stand-stills, restarts and a vm that
//! runs twice. It runs as the first process of the guest and powers it off when the power button is
//! pressed. With `drover.workload` it also serves clients as programs do that people wait for.
//!
//! ```text
//!   burn x vcpus   busy share of each period      tick     UDP line to drover.tick
//!   memory         rewrite at the set rate,       http x4  GET / /stats /verify, PUT /load
//!                  verify a few pages             power    ACPI button -> poweroff
//!   probe          numbered echo, UDP and TCP     web, game, database: one of them, by drover.workload
//! ```

mod burn;
mod database;
mod game;
mod http;
mod memory;
mod power;
mod probe;
mod serve;
mod settings;
mod stats;
mod tick;
mod web;

use settings::{Settings, Workload};
use stats::Shared;
use std::io::Read;
use std::sync::Arc;
use std::thread;

const CMDLINE: &str = "/proc/cmdline";
const HTTP_ADDRESS: &str = "0.0.0.0:80";

fn main() {
    if let Err(problem) = run() {
        // The console is all there is to tell anybody.
        eprintln!("guest-load: {problem}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    // Outside a vm, for trying it by hand, the settings come as one argument in the same form.
    let cmdline = match std::env::args().nth(1) {
        Some(argument) => argument,
        None => std::fs::read_to_string(CMDLINE).map_err(|e| format!("can't read {CMDLINE}: {e}"))?,
    };
    let settings = Settings::from_cmdline(&cmdline)?;
    let shared = Arc::new(Shared::new(&settings, random_boot_id()?));
    let listener = http::bind(settings.listen.as_deref().unwrap_or(HTTP_ADDRESS))?;

    let vcpus = thread::available_parallelism().map_or(1, usize::from);
    for _ in 0..vcpus {
        let shared = shared.clone();
        thread::spawn(move || burn::run(&shared));
    }
    {
        let shared = shared.clone();
        thread::spawn(move || memory::run(&shared));
    }
    if let Some(sink) = settings.tick {
        let shared = shared.clone();
        thread::spawn(move || tick::run(&shared, sink));
    }
    if let Some(workload) = settings.workload {
        probe::start()?;
        match workload {
            Workload::Idle | Workload::Diabolical => {}
            Workload::Web => web::start()?,
            Workload::Game => game::start()?,
            Workload::Database => database::start()?,
        }
    }
    power::watch();
    println!("guest-load: {} {} ready, {vcpus} vcpu", shared.name, shared.boot_id());
    http::serve(listener, &shared);
    Ok(())
}

/// Tells two boots of one vm apart.
fn random_boot_id() -> Result<u64, String> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| format!("can't read /dev/urandom: {e}"))?;
    Ok(u64::from_le_bytes(bytes))
}
