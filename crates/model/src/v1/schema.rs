//! OpenAPI schemas of the model's word lists, which know nothing of OpenAPI themselves.
//!
//! Each function names the words of one enum of `drover_model`; the tests hold the words against the enums.

use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{RefOr, Schema};

macro_rules! word_list {
    ($list:ident, $required:ident, $optional:ident, [$($word:literal),+ $(,)?]) => {
        pub const $list: &[&str] = &[$($word),+];

        pub fn $required() -> RefOr<Schema> {
            words($list)
        }

        pub fn $optional() -> RefOr<Schema> {
            or_null(words($list))
        }
    };
    ($list:ident, $required:ident, [$($word:literal),+ $(,)?]) => {
        pub const $list: &[&str] = &[$($word),+];

        pub fn $required() -> RefOr<Schema> {
            words($list)
        }
    };
}

word_list!(MODES, mode, ["observe", "propose", "act"]);
word_list!(AIMS, aim, ["balance", "save", "auto"]);
word_list!(
    SCENARIOS,
    scenario,
    optional_scenario,
    ["balanced", "hotspot", "saturated", "underused", "mixed", "degraded"]
);
word_list!(HEATS, heat, ["hot", "warm", "cold", "unknown"]);
word_list!(RESOURCES, resource, ["cpu", "memory"]);
word_list!(HOST_STATES, host_state, ["unknown", "up", "suspect", "down", "asleep", "waking", "falling-asleep"]);
word_list!(POWER_INTENTS, power_intent, ["on", "asleep", "off"]);
word_list!(ACCELERATORS, accelerator, ["kvm", "tcg"]);
word_list!(RUN_INTENTS, run_intent, ["running", "stopped"]);
word_list!(SEVERITIES, severity, ["info", "warning", "escalation"]);
word_list!(
    MIGRATION_PHASES,
    migration_phase,
    ["queued", "reserved", "pre-copy", "committed", "done", "failed", "cancelled", "taken-back", "restarted"]
);
word_list!(METHODS, method, optional_method, ["pre-copy", "post-copy", "stop-and-copy"]);
word_list!(PRIORITIES, priority, ["low", "normal", "high"]);
word_list!(PLAN_STATES, plan_state, ["proposed", "running", "settling", "done", "failed", "rejected", "superseded"]);
word_list!(STEP_STATES, step_state, ["waiting", "running", "done", "failed", "skipped"]);

word_list!(DIRECTIONS, direction, ["ingress", "egress"]);
word_list!(RULES, rule, ["together", "apart", "on", "not-on", "hosts-max"]);
pub const SCOPES: &[&str] = &["host", "rack", "zone"];
word_list!(PROTOCOLS, protocol, ["any", "tcp", "udp", "icmp"]);

fn words(list: &[&str]) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(list.iter().copied())).into()
}

fn or_null(schema: RefOr<Schema>) -> RefOr<Schema> {
    OneOfBuilder::new().item(ObjectBuilder::new().schema_type(Type::Null)).item(schema).into()
}

pub fn optional_scope() -> RefOr<Schema> {
    or_null(words(SCOPES))
}

/// Eleven figures, or `null`.
pub fn power_curve() -> RefOr<Schema> {
    let watts = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).maximum(Some(100_000));
    or_null(ArrayBuilder::new().items(watts).min_items(Some(11)).max_items(Some(11)).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Severity;
    use crate::intent::{PowerIntent, RunIntent};
    use crate::inventory::Accelerator;
    use crate::migration::{Method, Priority};
    use crate::network::{Direction, Protocol};
    use crate::placement::Scope;
    use crate::plan::{Heat, Resource, Scenario};
    use crate::policy::{Aim, Mode};
    use crate::v1::RuleWord;
    use crate::world::HostState;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    fn each_word_is_known<T: DeserializeOwned + Serialize>(list: &[&str]) {
        for word in list {
            let quoted = format!("\"{word}\"");
            let value: T = serde_json::from_str(&quoted).unwrap();
            assert_eq!(serde_json::to_string(&value).unwrap(), quoted);
        }
        let unknown = serde_json::from_str::<T>("\"no-such-word\"").err().unwrap().to_string();
        for word in unknown.split("expected").nth(1).unwrap().split('`').skip(1).step_by(2) {
            assert!(list.contains(&word), "the schema lacks {word:?}");
        }
    }

    #[test]
    fn the_schema_lists_exactly_the_words_of_the_model() {
        each_word_is_known::<Mode>(MODES);
        each_word_is_known::<Aim>(AIMS);
        each_word_is_known::<Scenario>(SCENARIOS);
        each_word_is_known::<Heat>(HEATS);
        each_word_is_known::<Resource>(RESOURCES);
        each_word_is_known::<HostState>(HOST_STATES);
        each_word_is_known::<PowerIntent>(POWER_INTENTS);
        each_word_is_known::<Accelerator>(ACCELERATORS);
        each_word_is_known::<RunIntent>(RUN_INTENTS);
        each_word_is_known::<Severity>(SEVERITIES);
        each_word_is_known::<Method>(METHODS);
        each_word_is_known::<Priority>(PRIORITIES);
        each_word_is_known::<Direction>(DIRECTIONS);
        each_word_is_known::<Protocol>(PROTOCOLS);
        each_word_is_known::<RuleWord>(RULES);
        each_word_is_known::<Scope>(SCOPES);
    }
}
