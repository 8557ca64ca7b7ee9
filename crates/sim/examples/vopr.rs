fn main() {
    let mut a = std::env::args().skip(1).map(|x| x.parse::<u64>().unwrap());
    let seed = a.next().unwrap_or(1);
    let seeds = a.next().unwrap_or(1);
    let minutes = a.next().unwrap_or(20);
    let hosts = a.next().unwrap_or(4) as usize;
    let vms = a.next().unwrap_or(8) as usize;
    let keep = a.next().unwrap_or(0);
    let mut bad = 0;
    for seed in seed..seed + seeds {
        match drover_sim::run(&drover_sim::Options { seed, minutes, hosts, vms }) {
            Ok(s) => if seeds <= 5 { println!("{s}") },
            Err(f) => {
                bad += 1;
                if keep == 0 { println!("{f}"); return; }
                println!("seed {seed} {:?} {}", f.kind, f.what);
            }
        }
    }
    println!("{bad} bad of {seeds}");
}
