//! Where every instance is, and what the score would be if one or two were elsewhere, in constant time.
//!
//! A standard deviation needs only the sum and the sum of squares over the nodes, and a move changes both by what it
//! changes on two nodes. The slope of the score in these sums gives each candidate a number before that, which takes
//! multiplications only. As the score is concave in the sums, the true score is never above what the slope promises: a
//! candidate that looks good is good.

use super::problem::{CONFLICT, DIMENSIONS, Guest, OFFLINE, Problem, Row, SHORT};

#[derive(Debug, Clone)]
pub struct State<'a> {
    pub problem: &'a Problem,
    /// By instance: its node.
    pub node_of: Vec<usize>,
    /// By node: the instances on it that may move.
    pub on: Vec<Vec<usize>>,
    /// Instances that are not where they were at the start.
    pub away: usize,
    /// The part of the score that moves change.
    pub score: f64,
    nodes: Vec<Node>,
    places: Vec<i32>,
    sum: Row,
    squares: Row,
    slopes: Slopes,
}

/// What the score changes per unit added to a node, and per unit squared, as far as the slope reaches. Single precision is
/// enough to choose by, and a column per dimension is what a processor goes through fastest.
#[derive(Debug, Clone)]
pub struct Slopes {
    /// By dimension and node.
    linear: [Vec<f32>; DIMENSIONS],
    square: [Vec<f32>; DIMENSIONS],
    /// By instance: what it promises to take it away from where it is, and what its weight alone costs on a like node.
    leaving: Vec<f32>,
    weight: Vec<f32>,
    /// Of the score in the sums of squares and in the sums, when these were made.
    of_square: Row,
    of_sum: Row,
    /// Whether `square` is the same for all nodes that are online.
    alike: bool,
}

#[derive(Debug, Clone)]
struct Node {
    at: Row,
    free: i64,
    reported: i64,
    free_to_come: i64,
    vcpus_left: i64,
    count: i64,
    tags: Vec<i32>,
}

/// Below this a deviation has no slope worth following.
const DEVIATION_MIN: f64 = 1e-9;
/// Slopes that have changed by more than this part are taken anew for all nodes.
const SLOPE_STALE: f64 = 0.01;

impl<'a> State<'a> {
    pub fn start(problem: &'a Problem) -> Self {
        let nodes: Vec<Node> = problem
            .nodes
            .iter()
            .map(|host| Node {
                at: host.at,
                free: host.free,
                reported: host.reported,
                free_to_come: host.free_to_come,
                vcpus_left: host.vcpus_left,
                count: host.count,
                tags: host.tags.clone(),
            })
            .collect();
        let mut on = vec![Vec::new(); nodes.len()];
        for (at, guest) in problem.instances.iter().enumerate() {
            on[guest.home].push(at);
        }
        let columns: [Vec<f32>; DIMENSIONS] = std::array::from_fn(|_| vec![0.0; nodes.len()]);
        let mut state = Self {
            problem,
            node_of: problem.instances.iter().map(|guest| guest.home).collect(),
            on,
            away: 0,
            score: 0.0,
            nodes,
            places: problem.places.clone(),
            sum: [0.0; DIMENSIONS],
            squares: [0.0; DIMENSIONS],
            slopes: Slopes {
                linear: columns.clone(),
                square: columns,
                leaving: vec![0.0; problem.instances.len()],
                weight: vec![0.0; problem.instances.len()],
                of_square: [0.0; DIMENSIONS],
                of_sum: [0.0; DIMENSIONS],
                alike: problem.alike(),
            },
        };
        state.refresh();
        state
    }

    /// Sums anew what has been added up move by move.
    pub fn refresh(&mut self) {
        (self.sum, self.squares) = ([0.0; DIMENSIONS], [0.0; DIMENSIONS]);
        for node in self.online() {
            let at = self.nodes[node].at;
            for ((sum, squares), at) in self.sum.iter_mut().zip(&mut self.squares).zip(&at) {
                *sum += at;
                *squares += at * at;
            }
        }
        self.score = deviations(self.problem, &self.sum, &self.squares) + self.counts();
        (self.slopes.of_square, self.slopes.of_sum) = self.slope();
        (0..self.nodes.len()).for_each(|node| self.slope_of(node));
    }

    fn online(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.problem.nodes[*node].online).collect()
    }

    /// The counts of the score that moves change, over all nodes.
    fn counts(&self) -> f64 {
        let mut counts = 0.0;
        for (at, node) in self.nodes.iter().enumerate() {
            if self.problem.nodes[at].online {
                counts += self.short(at);
                counts += CONFLICT * node.tags.iter().map(|count| f64::from((count - 1).max(0))).sum::<f64>();
            } else {
                counts += OFFLINE * self.on[at].len() as f64;
            }
        }
        let unmet = |(at, guest): (usize, &Guest)| self.unmet(guest, self.node_of[at]);
        counts += self.problem.instances.iter().enumerate().map(unmet).sum::<f64>();
        counts + self.places.iter().map(|count| f64::from((count - 1).max(0))).sum::<f64>()
    }

    fn unmet(&self, guest: &Guest, node: usize) -> f64 {
        if self.problem.nodes[node].online { guest.unmet.get(node).copied().unwrap_or_default() } else { 0.0 }
    }

    /// What a node counts for not being able to take over what it must.
    fn short(&self, node: usize) -> f64 {
        let (at, host) = (&self.nodes[node], &self.problem.nodes[node]);
        if host.online && at.reported < host.reserved { SHORT * at.count as f64 } else { 0.0 }
    }

    /// Of the score in the sum of squares and in the sum of each dimension.
    fn slope(&self) -> (Row, Row) {
        let online = self.problem.online;
        let mut of_square = [0.0; DIMENSIONS];
        let mut of_sum = [0.0; DIMENSIONS];
        for d in 0..DIMENSIONS {
            let mean = self.sum[d] / online;
            let deviation = (self.squares[d] / online - mean * mean).max(0.0).sqrt().max(DEVIATION_MIN);
            of_square[d] = self.problem.weights[d] / (2.0 * online * deviation);
            of_sum[d] = -2.0 * mean * of_square[d];
        }
        (of_square, of_sum)
    }

    /// The slopes of one node and what its instances promise to leave it.
    fn slope_of(&mut self, node: usize) {
        let (host, slopes) = (&self.problem.nodes[node], &mut self.slopes);
        let mut linear = [0.0; DIMENSIONS];
        let mut square = [0.0; DIMENSIONS];
        for d in 0..DIMENSIONS {
            let scale = host.scale[d];
            linear[d] = scale * (2.0 * slopes.of_square[d] * self.nodes[node].at[d] + slopes.of_sum[d]);
            square[d] = scale * scale * slopes.of_square[d];
            slopes.linear[d][node] = linear[d] as f32;
            slopes.square[d][node] = square[d] as f32;
        }
        let bonus = if host.online { 0.0 } else { OFFLINE };
        for &instance in &self.on[node] {
            let adds = &self.problem.instances[instance].adds;
            let mut weight = 0.0;
            let mut leaving = -bonus;
            for d in 0..DIMENSIONS {
                weight += adds[d] * adds[d] * square[d];
                leaving -= adds[d] * linear[d];
            }
            slopes.leaving[instance] = (leaving + weight) as f32;
            slopes.weight[instance] = weight as f32;
        }
    }

    /// What the slope promises for the instance on each node, less what it does on its own.
    pub fn promises(&self, instance: usize, promises: &mut Vec<f32>) {
        let slopes = &self.slopes;
        let adds = self.problem.instances[instance].adds.map(|add| add as f32);
        let own = slopes.leaving[instance] + if slopes.alike { slopes.weight[instance] } else { 0.0 };
        promises.clear();
        promises.resize(self.nodes.len(), own);
        add_products(promises, &slopes.linear, 0, &adds);
        if !slopes.alike {
            add_products(promises, &slopes.square, 0, &adds.map(|add| add * add));
        }
    }

    /// What the slope promises for changing places with each instance after this one in the order. `moved` is what it
    /// promises for moving there alone. Between nodes that are not alike it is only about right.
    pub fn promises_of_swaps(&self, one: usize, moved: &[f32], promises: &mut Vec<f32>) {
        let (after, node, slopes) = (one + 1, self.node_of[one], &self.slopes);
        let own = slopes.leaving[after..].iter().zip(&slopes.weight[after..]).map(|(leaving, weight)| leaving + weight);
        promises.clear();
        promises.extend(self.node_of[after..].iter().zip(own).map(|(to, own)| moved[*to] + own));
        let adds = &self.problem.instances[one].adds;
        // Theirs on our node, which has lost us, as their node has lost them.
        let slope = std::array::from_fn(|d| slopes.linear[d][node] - 4.0 * adds[d] as f32 * slopes.square[d][node]);
        add_products(promises, &self.problem.columns, after, &slope);
    }

    /// Whether the node takes the instance, as hbal asks before every move. Who comes from a node that is offline may
    /// break what is merely policy.
    pub fn takes(&self, node: usize, instance: usize) -> bool {
        self.takes_after(node, instance, 0, 0, 0)
    }

    fn takes_after(&self, node: usize, instance: usize, used: i64, memory: i64, vcpus: i64) -> bool {
        let (host, at) = (&self.problem.nodes[node], &self.nodes[node]);
        let (guest, from) = (&self.problem.instances[instance], self.node_of[instance]);
        let left = at.free + used - guest.memory_used;
        if !host.online || left <= 0 {
            return false;
        }
        let policy = || {
            (left > host.reserved || at.reported < host.reserved)
                && at.free_to_come + memory - guest.memory > 0
                && at.vcpus_left + vcpus >= guest.vcpus
        };
        let forced = !self.problem.nodes[from].online;
        (forced || policy())
            && (self.problem.plain
                || (self.problem.may_migrate[from][node]
                    && (forced || guest.tags.iter().all(|tag| at.tags[*tag] == 0))))
    }

    /// Whether each could be where the other is, when that one has gone. Two with the same exclusion tag can't: one of
    /// them has to come before the other goes.
    pub fn swappable(&self, one: usize, other: usize) -> bool {
        let (a, b) = (&self.problem.instances[one], &self.problem.instances[other]);
        let (p, q) = (self.node_of[one], self.node_of[other]);
        self.takes_after(q, one, b.memory_used, b.memory, b.vcpus)
            && self.takes_after(p, other, a.memory_used, a.memory, a.vcpus)
    }

    /// What the score changes if the instance goes there.
    pub fn change(&self, instance: usize, to: usize) -> f64 {
        let guest = &self.problem.instances[instance];
        let from = self.node_of[instance];
        let changed = self.deviations_after(&guest.adds, from, to);
        changed + self.counts_after(instance, from, to)
    }

    /// What the score changes if they change places.
    pub fn change_of_swap(&self, one: usize, other: usize) -> f64 {
        let (a, b) = (&self.problem.instances[one], &self.problem.instances[other]);
        let (p, q) = (self.node_of[one], self.node_of[other]);
        let adds: Row = std::array::from_fn(|d| a.adds[d] - b.adds[d]);
        let (ours, theirs) = (a.memory_used - b.memory_used, self.short(p) + self.short(q));
        let short = |node: usize, more: i64| {
            let (at, host) = (&self.nodes[node], &self.problem.nodes[node]);
            if host.online && at.reported - more < host.reserved { SHORT * at.count as f64 } else { 0.0 }
        };
        let counts = short(q, ours) + short(p, -ours) - theirs;
        let unmet = self.unmet(a, q) + self.unmet(b, p) - self.unmet(a, p) - self.unmet(b, q);
        let tags = if self.problem.plain { 0.0 } else { self.tags_after(a, p, q) + self.tags_after(b, q, p) };
        self.deviations_after(&adds, p, q) + counts + unmet + tags
    }

    fn deviations_after(&self, adds: &Row, from: usize, to: usize) -> f64 {
        let (p, q) = (&self.nodes[from].at, &self.nodes[to].at);
        let (less, more) = (&self.problem.nodes[from].scale, &self.problem.nodes[to].scale);
        let mut sum = self.sum;
        let mut squares = self.squares;
        for d in 0..DIMENSIONS {
            let (less, more) = (adds[d] * less[d], adds[d] * more[d]);
            sum[d] += more - less;
            squares[d] += more * (2.0 * q[d] + more) - less * (2.0 * p[d] - less);
        }
        deviations(self.problem, &sum, &squares) - deviations(self.problem, &self.sum, &self.squares)
    }

    fn counts_after(&self, instance: usize, from: usize, to: usize) -> f64 {
        let guest = &self.problem.instances[instance];
        let after = |node: usize, more: i64, count: i64| {
            let (at, host) = (&self.nodes[node], &self.problem.nodes[node]);
            if host.online && at.reported - more < host.reserved { SHORT * (at.count + count) as f64 } else { 0.0 }
        };
        let short =
            after(from, -guest.memory_used, -1) - self.short(from) + after(to, guest.memory_used, 1) - self.short(to);
        let offline = if self.problem.nodes[from].online { 0.0 } else { -OFFLINE };
        let tags = if self.problem.plain { 0.0 } else { self.tags_after(guest, from, to) };
        short + offline + tags + self.unmet(guest, to) - self.unmet(guest, from)
    }

    fn tags_after(&self, guest: &Guest, from: usize, to: usize) -> f64 {
        let (p, q) = (&self.problem.nodes[from], &self.problem.nodes[to]);
        let mut change = 0.0;
        for tag in &guest.tags {
            if p.online && self.nodes[from].tags[*tag] > 1 {
                change -= CONFLICT;
            }
            if self.nodes[to].tags[*tag] > 0 {
                change += CONFLICT;
            }
            let count = |location: &usize| self.places[location * self.problem.tags + tag];
            let leaves = p.locations.iter().filter(|l| p.online && !q.locations.contains(l) && count(l) > 1).count();
            let stays = |l: &usize| p.online && p.locations.contains(l);
            let comes = q.locations.iter().filter(|l| !stays(l) && count(l) > 0).count();
            change += comes as f64 - leaves as f64;
        }
        change
    }

    /// Moves the instance; `change` is what the score changes by it.
    pub fn apply(&mut self, instance: usize, to: usize, change: f64) {
        let from = self.node_of[instance];
        let guest = &self.problem.instances[instance];
        self.away += usize::from(from == guest.home);
        self.away -= usize::from(to == guest.home);
        self.node_of[instance] = to;
        self.on[from].retain(|other| *other != instance);
        self.on[to].push(instance);
        self.put(guest, from, -1);
        self.put(guest, to, 1);
        self.score += change;
        let (of_square, of_sum) = self.slope();
        let stale = |(now, then): (&f64, &f64)| (now - then).abs() > SLOPE_STALE * then;
        if of_square.iter().zip(&self.slopes.of_square).any(stale) {
            (self.slopes.of_square, self.slopes.of_sum) = (of_square, of_sum);
            (0..self.nodes.len()).for_each(|node| self.slope_of(node));
        } else {
            self.slope_of(from);
            self.slope_of(to);
        }
    }

    fn put(&mut self, guest: &Guest, node: usize, sign: i64) {
        let (at, host) = (&mut self.nodes[node], &self.problem.nodes[node]);
        for d in 0..DIMENSIONS {
            let add = sign as f64 * guest.adds[d] * host.scale[d];
            self.sum[d] += add;
            self.squares[d] += add * (2.0 * at.at[d] + add);
            at.at[d] += add;
        }
        at.free -= sign * guest.memory_used;
        at.reported -= sign * guest.memory_used;
        at.free_to_come -= sign * guest.memory;
        at.vcpus_left -= sign * guest.vcpus;
        at.count += sign;
        let one = if sign < 0 { -1 } else { 1 };
        for tag in &guest.tags {
            at.tags[*tag] += one;
            for location in host.locations.iter().filter(|_| host.online) {
                self.places[location * self.problem.tags + tag] += one;
            }
        }
    }
}

fn deviations(problem: &Problem, sum: &Row, squares: &Row) -> f64 {
    let mut total = [0.0; DIMENSIONS];
    for d in 0..DIMENSIONS {
        let mean = sum[d] / problem.online;
        total[d] = problem.weights[d] * (squares[d] / problem.online - mean * mean).max(0.0).sqrt();
    }
    total.iter().sum()
}

/// Adds to each sum its row of the columns, from `after` on, times the factors: all dimensions at once, in a form that
/// becomes vector instructions.
fn add_products(sums: &mut [f32], columns: &[Vec<f32>; DIMENSIONS], after: usize, factors: &[f32; DIMENSIONS]) {
    let count = sums.len();
    let [a, b, c, d, e, f, g, h] = columns.each_ref().map(|column| &column[after..after + count]);
    let [i, j, k, l, m, n, o, p] = *factors;
    for at in 0..count {
        sums[at] +=
            (a[at] * i + b[at] * j + (c[at] * k + d[at] * l)) + (e[at] * m + f[at] * n + (g[at] * o + h[at] * p));
    }
}
