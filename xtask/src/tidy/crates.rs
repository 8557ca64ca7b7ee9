//! Rules about crates: which may look at which, and that all obey the workspace's lints.

use super::{Source, Violation};
use crate::run;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// Every crate of the workspace, and the crates of the workspace it may depend on.
const MAY_LOOK_AT: [(&str, &[&str]); 13] = [
    ("drover-model", &[]),
    ("drover-planner", &["drover-model"]),
    ("drover-control", &["drover-model", "drover-planner"]),
    ("drover-sim", &["drover-model", "drover-planner", "drover-control"]),
    ("drover-api", &["drover-model"]),
    ("drover-qemu", &[]),
    ("drover-agent", &["drover-model", "drover-api", "drover-qemu"]),
    ("drover-server", &["drover-model", "drover-planner", "drover-control", "drover-api"]),
    // The planner for `drover plan --from`, which asks no server.
    ("drover", &["drover-model", "drover-planner", "drover-api", "drover-agent", "drover-server", "drover-sim"]),
    // Its demo shows the same live screen as `drover top`; its bench drives a QEMU of its own to compare with.
    // `bench control` fills the store of a server that does not run yet.
    ("drover-lab", &["drover-model", "drover-api", "drover-control", "drover-qemu", "drover-server", "drover"]),
    ("drover-benches", &["drover-model", "drover-planner", "drover-sim"]),
    ("guest-load", &[]),
    ("xtask", &[]),
];

/// Crates that are pure functions, and the only crates from outside that they may use.
const PURE: [&str; 3] = ["drover-model", "drover-planner", "drover-control"];
/// None of them has a clock, a socket, a file or randomness: maps that share what they have in common, merge patches,
/// hashes of requests, and the schemas of what goes over the wire.
const PURE_MAY_USE: [&str; 7] =
    ["serde", "serde_json", "thiserror", "immutable-chunkmap", "json-patch", "sha2", "utoipa"];

pub fn check(root: &Path, sources: &[Source]) -> Result<Vec<Violation>> {
    let said = run::stdout(
        run::cargo().current_dir(root).args(["metadata", "--format-version", "1", "--no-deps", "--locked"]),
        "mend the manifest that it names",
    )?;
    let metadata: Value = serde_json::from_str(&said).context("cargo metadata printed something else than JSON")?;
    let mut found = lints(sources);
    for package in metadata["packages"].as_array().context("cargo metadata names no packages")? {
        found.extend(looks(package));
    }
    Ok(found)
}

fn looks(package: &Value) -> Vec<Violation> {
    let name = package["name"].as_str().unwrap_or_default();
    let Some((_, allowed)) = MAY_LOOK_AT.iter().find(|(known, _)| *known == name) else {
        let problem = "a crate that tidy does not know: give it its place in the table of xtask's tidy/crates.rs";
        return vec![Violation::at(name, problem)];
    };
    let mut found = Vec::new();
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        // Tests may use what they like.
        if dependency["kind"].as_str() == Some("dev") {
            continue;
        }
        let on = dependency["name"].as_str().unwrap_or_default();
        let ours = MAY_LOOK_AT.iter().any(|(known, _)| *known == on);
        if ours && !allowed.contains(&on) {
            found.push(Violation::at(
                name,
                format!("depends on {on}, which it must not know (design: crates, and which way they may look)"),
            ));
        }
        if !ours && PURE.contains(&name) && !PURE_MAY_USE.contains(&on) {
            found.push(Violation::at(
                name,
                format!("depends on {on}, and a pure crate uses only {}", PURE_MAY_USE.join(", ")),
            ));
        }
    }
    found
}

fn lints(sources: &[Source]) -> Vec<Violation> {
    let obeys = |text: &str| {
        text.split_once("[lints]").is_some_and(|(_, rest)| rest.trim_start().starts_with("workspace = true"))
    };
    sources
        .iter()
        .filter(|source| source.path.ends_with("/Cargo.toml") && !obeys(&source.text))
        .map(|source| Violation::at(&source.path, "add `[lints]` with `workspace = true`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Value {
        let dependencies: Vec<Value> =
            dependencies.iter().map(|(on, kind)| serde_json::json!({"name": on, "kind": kind})).collect();
        serde_json::json!({"name": name, "dependencies": dependencies})
    }

    #[test]
    fn a_crate_that_looks_the_wrong_way_is_found() {
        assert_eq!(looks(&package("drover-control", &[("drover-planner", None), ("serde", None)])), []);
        let found = looks(&package("drover-planner", &[("drover-control", None)]));
        assert!(found[0].problem.contains("depends on drover-control"), "{found:?}");
        assert_eq!(looks(&package("drover-qemu", &[("drover-model", None)])).len(), 1);
    }

    #[test]
    fn a_pure_crate_with_a_runtime_is_found_but_its_tests_may_have_one() {
        assert_eq!(looks(&package("drover-model", &[("tokio", None)])).len(), 1);
        assert_eq!(looks(&package("drover-model", &[("proptest", Some("dev"))])), []);
        assert_eq!(looks(&package("drover-agent", &[("tokio", None)])), []);
    }

    #[test]
    fn an_unknown_crate_is_found() {
        assert_eq!(looks(&package("drover-common", &[])).len(), 1);
    }

    #[test]
    fn a_crate_without_the_workspace_lints_is_found() {
        let manifest = |text: &str| vec![Source { path: "crates/x/Cargo.toml".into(), text: text.into() }];
        assert_eq!(lints(&manifest("[package]\n\n[lints]\nworkspace = true\n")), []);
        assert_eq!(lints(&manifest("[package]\n")).len(), 1);
    }
}
