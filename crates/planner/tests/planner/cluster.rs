//! Clusters as text, in the product's own format (`drover_planner::text::native`), and lines `place VM`: asks for a
//! placement, too.

use drover_model::world::World;
use drover_model::{Generation, Revision, VmId};
use drover_planner::text::native;
pub use drover_planner::text::native::NOW;

pub struct Cluster {
    pub world: World,
    pub places: Vec<VmId>,
}

/// Every vm at generation 3, and the cluster at revision 7: figures that nothing else has.
pub fn parse(text: &str) -> Cluster {
    let mut places = Vec::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        match line.trim().strip_prefix("place ") {
            Some(vm) => places.push(vm.trim().parse().unwrap()),
            None => lines.push(line),
        }
    }
    let mut world = native::parse(&lines.join("\n")).unwrap_or_else(|error| panic!("{error} in\n{text}"));
    world.revision = Revision(7);
    for vm in world.vms.values_mut() {
        vm.generation = Generation(3);
    }
    Cluster { world, places }
}
