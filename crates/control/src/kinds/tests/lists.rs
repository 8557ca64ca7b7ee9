//! Lists and their pages, and finding one object.

use super::*;
use drover_model::plan::{Findings, Plan, PlanState, Prediction, Scenario};
use drover_model::v1::{List, ListQuery};
use drover_model::{MicroMoney, MicroMoneyPerHour, PlanId};

/// All pages, with so many objects at most on each.
fn pages<K: Resource>(site: &Site, actor: &Actor, query: &ListQuery) -> Vec<K::View> {
    let mut query = query.clone();
    let mut items = Vec::new();
    for _ in 0..1_000 {
        let List { items: page, next } = site.control.list::<K>(actor, &query).unwrap();
        let full = page.len() == query.limit.unwrap();
        items.extend(page);
        match next {
            Some(next) => query.cursor = Some(next),
            None => return items,
        }
        assert!(full, "only the last page has room left");
    }
    panic!("there is no last page");
}

fn limit(limit: usize) -> ListQuery {
    ListQuery { limit: Some(limit), ..ListQuery::default() }
}

#[test]
fn the_pages_of_a_list_hold_everything_once_in_order() {
    let mut site = site();
    for n in 0..12 {
        let tenant = if n % 3 == 0 { "green" } else { "blue" };
        let key = made(&mut site, network(tenant, &format!("n-{n}")));
        if n % 2 == 0 {
            site.ask(patch(&key, json!({"labels": {"env": "prod"}}))).unwrap();
        }
    }
    let text = |text: &str| Some(text.to_owned());
    let queries = [
        (operator(), ListQuery::default(), 12),
        (operator(), ListQuery { tenant: text("blue"), ..ListQuery::default() }, 8),
        (of("blue"), ListQuery::default(), 8),
        (of("blue"), ListQuery { tenant: text("green"), ..ListQuery::default() }, 0),
        (operator(), ListQuery { selector: text("env=prod"), ..ListQuery::default() }, 6),
        (of("green"), ListQuery { selector: text("env"), ..ListQuery::default() }, 2),
        (operator(), ListQuery { selector: text("env=test"), ..ListQuery::default() }, 0),
        (operator(), ListQuery { name: text("n-1"), ..ListQuery::default() }, 1),
        (of("green"), ListQuery { name: text("n-1"), ..ListQuery::default() }, 0),
        (operator(), ListQuery { tenant: text("nobody"), ..ListQuery::default() }, 0),
    ];
    for (actor, query, count) in queries {
        let whole = site.control.list::<Network>(&actor, &query).unwrap();
        let ids: Vec<String> = whole.items.iter().map(|view| view.id.to_string()).collect();
        assert_eq!((ids.len(), whole.next), (count, None), "{query:?}");
        assert!(ids.is_sorted(), "{ids:?}");
        for size in [1, 2, 3, 5, 12, 1_000] {
            let query = ListQuery { limit: Some(size), ..query.clone() };
            let paged = pages::<Network>(&site, &actor, &query);
            assert_eq!(paged.iter().map(|view| view.id.to_string()).collect::<Vec<_>>(), ids, "{query:?}");
        }
    }
    // What is removed between two pages is not missed, and nothing is shown twice.
    let first = site.control.list::<Network>(&operator(), &limit(5)).unwrap();
    site.ask(remove(&key::<Network>(first.next.as_deref().unwrap()))).unwrap();
    let rest = ListQuery { cursor: first.next, ..limit(100) };
    assert_eq!(site.control.list::<Network>(&operator(), &rest).unwrap().items.len(), 7);
}

#[test]
fn a_list_is_chosen_by_name_state_label_and_host() {
    let mut site = site();
    for (n, at) in ["h1", "h2", "h1", "h1"].into_iter().enumerate() {
        let spec = small_vm("blue", &format!("v{n}"));
        let labels = [("n".parse().unwrap(), n.to_string())].into_iter().collect();
        site.ask(vm(&format!("vm-{n}"), VmSpec { pinned_to: [host(at)].into(), labels, ..spec })).unwrap();
    }
    site.pass(Millis::secs(5));
    site.set_run(&"vm-2".parse().unwrap(), RunIntent::Stopped).unwrap();
    site.pass(Millis::secs(5));
    let text = |text: &str| Some(text.to_owned());
    let find = |query: ListQuery| -> String {
        let found = pages::<Vm>(&site, &operator(), &ListQuery { limit: Some(1), ..query });
        found.iter().map(|view| view.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    let all = ListQuery::default;
    assert_eq!(find(all()), "v0 v1 v2 v3");
    assert_eq!(find(ListQuery { host: text("h1"), ..all() }), "v0 v2 v3");
    assert_eq!(find(ListQuery { host: text("h9"), ..all() }), "");
    assert_eq!(find(ListQuery { state: text("stopped"), ..all() }), "v2");
    assert_eq!(find(ListQuery { host: text("h1"), state: text("running"), ..all() }), "v0 v3");
    assert_eq!(find(ListQuery { name: text("v1"), ..all() }), "v1");
    assert_eq!(find(ListQuery { name: text("v1"), host: text("h1"), ..all() }), "");
    assert_eq!(find(ListQuery { selector: text("n=3"), ..all() }), "v3");
    let up = ListQuery { state: text("up"), ..limit(1) };
    assert_eq!(pages::<Host>(&site, &operator(), &up).len(), 2);
    for (query, field) in [
        (limit(0), "limit"),
        (limit(1_001), "limit"),
        (ListQuery { state: text("asleep"), ..all() }, "state"),
        (ListQuery { host: text("H1"), ..all() }, "host"),
        (ListQuery { tenant: text("No Name"), ..all() }, "tenant"),
        (ListQuery { selector: text("Env"), ..all() }, "selector"),
        (ListQuery { cursor: text("No Key"), ..all() }, "cursor"),
    ] {
        let refusal = site.control.list::<Vm>(&operator(), &query).unwrap_err();
        assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::Invalid, Some(field)), "{query:?}");
    }
    assert_eq!(site.control.list::<Host>(&of("blue"), &all()).unwrap_err().kind, RefusalKind::Forbidden);
}

#[test]
fn the_newest_plans_come_first() {
    let mut site = site();
    let (rate, at) = (MicroMoneyPerHour(0), TimeMs(1));
    let predicted = Prediction {
        rate_before: rate,
        rate_after: rate,
        moving_cost: MicroMoney(0),
        gain: MicroMoney(0),
        rate_bound: None,
        hosts: Default::default(),
    };
    for n in 1..=11 {
        let (scenario, why) = (Scenario::Balanced, String::new());
        let findings = Findings { at, scenario, why: why.clone(), hosts: Default::default() };
        let plan = Plan {
            parent: Revision(1),
            made_at: at,
            scenario,
            why,
            steps: Vec::new(),
            predicted: predicted.clone(),
            rejected: Vec::new(),
            timing: Default::default(),
        };
        let state = if n % 2 == 0 { PlanState::Done } else { PlanState::Rejected { by: "ops".to_owned() } };
        let (id, steps) = (PlanId(n), Vec::new());
        let record = PlanRecord { id, plan, findings, state, steps, finished_at: Some(at), verification: None };
        site.control.tables.put(record);
    }
    for size in [1, 2, 5, 11, 100] {
        let ids: Vec<u64> =
            pages::<PlanRecord>(&site, &operator(), &limit(size)).iter().map(|plan| plan.id.0).collect();
        assert_eq!(ids, (1..=11).rev().collect::<Vec<_>>(), "by {size}");
        let done = ListQuery { state: Some("done".to_owned()), ..limit(size) };
        let ids: Vec<u64> = pages::<PlanRecord>(&site, &operator(), &done).iter().map(|plan| plan.id.0).collect();
        assert_eq!(ids, [10, 8, 6, 4, 2], "by {size}");
    }
}

#[test]
fn an_id_comes_before_a_name_and_another_tenants_object_is_not_found() {
    let mut site = site();
    for (id, tenant, name) in [("vm-a", "blue", "a"), ("vm-b", "blue", "vm-a"), ("vm-c", "green", "a")] {
        site.ask(vm(id, small_vm(tenant, name))).unwrap();
    }
    site.ask(group("blue", "web")).unwrap();
    let find = |reference: &str, actor: &Actor, tenant: Option<&str>| -> Result<String, RefusalKind> {
        let tenant = tenant.map(|tenant| tenant.parse().unwrap());
        let found = site.control.find::<Vm>(reference, actor, tenant.as_ref());
        found.map(|row| row.value.id.to_string()).map_err(|refusal| refusal.kind)
    };
    let (blue, green, vm) = (of("blue"), of("green"), |id: &str| Ok(id.to_owned()));
    assert_eq!(find("vm-a", &operator(), None), vm("vm-a"), "not the one that is called vm-a");
    assert_eq!(find("blue/vm-a", &operator(), None), vm("vm-a"));
    assert_eq!(find("a", &operator(), None), Err(RefusalKind::Conflict));
    assert_eq!(find("blue/a", &operator(), None), vm("vm-a"));
    assert_eq!(find("a", &operator(), Some("green")), vm("vm-c"));
    assert_eq!(find("green/a", &operator(), Some("green")), Err(RefusalKind::NotFound), "a name has no slash");
    assert_eq!((find("a", &blue, None), find("a", &green, None)), (vm("vm-a"), vm("vm-c")));
    for (reference, tenant) in [("vm-a", None), ("blue/a", None), ("vm-b", Some("blue")), ("vm-b", Some("green"))] {
        assert_eq!(find(reference, &green, tenant), Err(RefusalKind::NotFound), "{reference} {tenant:?}");
    }
    for nonsense in ["", "/", "No/a", "x", "blue/x", "../a"] {
        assert_eq!(find(nonsense, &operator(), None), Err(RefusalKind::NotFound), "{nonsense:?}");
    }
    let groups = |reference: &str, actor: &Actor| site.control.find::<SecurityGroup>(reference, actor, None).is_ok();
    assert!(groups("blue/web", &operator()) && groups("web", &operator()) && groups("web", &blue));
    assert!(!groups("blue/web", &green) && !groups("web", &green));
}
