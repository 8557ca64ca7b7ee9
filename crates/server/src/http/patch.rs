//! What all merge patches (RFC 7396) have in common: the whole is read, changed and written back under its revision.

use super::problem::Failure;
use drover_api::problem::ProblemType;

/// How often a patch is applied anew because somebody else changed the object meanwhile.
pub const PATCH_TRIES_MAX: usize = 4;

/// A patch of another shape than the object's, with the field that it names.
pub fn bad_patch(error: &serde_json::Error) -> Failure {
    let said = error.to_string();
    match said.split('`').nth(1) {
        Some(field) if said.starts_with("unknown field") => Failure::invalid(field, said.clone()),
        _ => Failure::new(ProblemType::Invalid, said),
    }
}

/// Somebody else was quicker.
pub fn lost_race(failure: &Failure) -> bool {
    failure.0.status == ProblemType::PreconditionFailed.status()
}
