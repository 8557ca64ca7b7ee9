//! Many seeds: each disturbs a cluster of its own for a while and then demands that it comes to rest.

use drover_sim::{Options, run};

/// Two threads, half of the seeds each.
const THREADS: u64 = 2;
const SEEDS: u64 = 20;

#[test]
fn whatever_breaks_every_vm_runs_once_and_comes_to_rest() {
    let half = |half: u64| {
        move || {
            let mut moved = 0;
            for seed in 0..SEEDS {
                let options = Options { seed: half * SEEDS + seed, minutes: 20, ..Options::default() };
                match run(&options) {
                    Ok(summary) => moved += summary.moves(),
                    Err(failure) => panic!("{failure}"),
                }
            }
            moved
        }
    };
    let threads: Vec<_> = (0..THREADS).map(|n| std::thread::spawn(half(n))).collect();
    let moved: u64 = threads.into_iter().map(|thread| thread.join().expect("the seed's own report is above")).sum();
    assert!(moved > THREADS * SEEDS, "hardly anything moved, so hardly anything was tested: {moved} moves");
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    let options = Options { seed: 7, minutes: 5, ..Options::default() };
    assert_eq!(run(&options), run(&options));
}
