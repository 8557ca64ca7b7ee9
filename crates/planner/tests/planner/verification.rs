//! What was measured after a plan against what it predicted.

use crate::cluster::parse;
use drover_model::load::Window;
use drover_model::plan::Plan;
use drover_model::world::{HostState, World};
use drover_planner::predict::Predictor;
use drover_planner::{apply, detect, plan, verify};

const HOTSPOT: &str = "
    host h1 cpu=2 mem=8192
    host h2 cpu=2 mem=8192
    vm a vcpus=2 mem=1024 on=h1 load=1.2
    vm b vcpus=2 mem=1024 on=h1 load=0.7
    vm c vcpus=2 mem=1024 on=h2 load=0.1";

fn planned() -> (World, Plan) {
    let world = parse(HOTSPOT).world;
    let plan = plan(&world, &detect(&world), &Predictor::new());
    assert_eq!(plan.steps.len(), 1);
    (world, plan)
}

#[test]
fn a_plan_that_came_out_as_predicted_is_kept() {
    let (world, plan) = planned();
    let verification = verify(&plan, &apply(&world, &plan));
    assert!(verification.kept, "{}", verification.summary);
    assert_eq!(verification.hosts.len(), 2);
    assert!(verification.summary.contains("h2 at 40 % (40 % predicted)"), "{}", verification.summary);
}

#[test]
fn a_plan_that_was_not_carried_out_is_not_kept() {
    let (world, plan) = planned();
    let verification = verify(&plan, &world);
    assert!(!verification.kept);
    for miss in ["b is not on h2", "h1 is asked for 95 %", "h1 is hot"] {
        assert!(verification.summary.contains(miss), "{}", verification.summary);
    }
}

#[test]
fn what_is_not_measured_is_not_kept() {
    let (world, plan) = planned();
    let mut after = apply(&world, &plan);
    after.hosts.get_mut(&"h2".parse().unwrap()).unwrap().load = Window::default();
    assert!(verify(&plan, &after).summary.contains("the load of h2 is not known"));
}

#[test]
fn old_telemetry_is_no_measurement() {
    let (world, plan) = planned();
    let mut after = apply(&world, &plan);
    after.now.0 += 60_000;
    assert!(verify(&plan, &after).summary.contains("the load of h2 is not known"));
}

#[test]
fn a_host_that_did_not_wake_is_a_miss() {
    let world = parse(
        "host h1 cpu=2 mem=4096
         host h2 cpu=2 mem=4096 state=asleep managed
         vm a vcpus=2 mem=512 on=h1 load=1.0
         vm b vcpus=2 mem=512 on=h1 load=1.0",
    )
    .world;
    let plan = plan(&world, &detect(&world), &Predictor::new());
    assert!(verify(&plan, &apply(&world, &plan)).kept);
    let mut after = apply(&world, &plan);
    after.hosts.get_mut(&"h2".parse().unwrap()).unwrap().state = HostState::Waking;
    assert!(verify(&plan, &after).summary.contains("h2 is not up"));
}
