//! What is ordered when, written down as an operator would read it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::*;
use crate::record::{ChallengeKind, OrderEvent, Private};

const CA: &str = "https://ca.test/dir";
const DAY: u64 = 24 * 3600 * 1000;
const HOURS: u64 = 3600 * 1000;
const MINUTES: u64 = 60 * 1000;
/// Day 1,000.
const NOW: u64 = 1000 * DAY;

fn rules() -> Rules<'static> {
    let retry = Retry { first: Duration::from_secs(120), max: Duration::from_secs(12 * 3600) };
    Rules { directory: CA, renew_before: None, retry, orders_per_hour: 60 }
}

fn host(name: &str) -> Host {
    name.parse().unwrap()
}

fn certificate(name: &str, issued: u64, life: u64) -> HostCertificate {
    HostCertificate {
        host: host(name),
        directory: CA.into(),
        chain: String::new(),
        key: Private::new(String::new()),
        not_before: Wall(issued),
        not_after: Wall(issued + life),
        issued: Wall(issued),
        order: "op-aaaaaaaaaaaaaaaa".parse().unwrap(),
    }
}

fn order(name: &str, at: u64) -> CertificateOrder {
    let id = "op-aaaaaaaaaaaaaaaa".parse().unwrap();
    CertificateOrder::new(id, host(name), CA.into(), ChallengeKind::Http, None, Wall(at))
}

fn failed(name: &str, at: u64, failures: u32, told_s: Option<u64>) -> CertificateOrder {
    let told_to_wait = told_s.map(Duration::from_secs);
    let event = OrderEvent::Failed { why: "no".into(), told_to_wait };
    let order = CertificateOrder { failures: failures - 1, ..order(name, at) };
    order.after(event, Wall(at)).unwrap()
}

#[derive(Default)]
struct World {
    certificates: BTreeMap<Host, HostCertificate>,
    orders: BTreeMap<Host, CertificateOrder>,
    pace: OrderPace,
}

impl World {
    fn with(mut self, c: HostCertificate) -> Self {
        self.certificates.insert(c.host.clone(), c);
        self
    }
    fn after(mut self, o: CertificateOrder) -> Self {
        self.orders.insert(o.host.clone(), o);
        self
    }
    fn knows<'w>(&'w self, hosts: &'w [Host]) -> Vec<Known<'w>> {
        let known = |host| Known {
            host,
            certificate: self.certificates.get(host),
            order: self.orders.get(host),
        };
        hosts.iter().map(known).collect()
    }
    fn plan(&self, names: &str, rules: &Rules<'_>, now: u64) -> Plan {
        let hosts: Vec<Host> = names.split_whitespace().map(host).collect();
        plan(self.knows(&hosts), &self.pace, rules, Wall(now))
    }
    /// As a line of a golden file: times in minutes from [`NOW`].
    fn line(&self, what: &str, names: &str, rules: &Rules<'_>, now: u64) -> String {
        let plan = self.plan(names, rules, now);
        let order: Vec<_> = plan.order.iter().map(Host::as_str).collect();
        let next = plan.next.map_or_else(
            || "-".to_owned(),
            |at| format!("{:+}m", (at.0 as i64 - NOW as i64) / MINUTES as i64),
        );
        format!("{what}: order [{}], held back {}, next {next}\n", order.join(" "), plan.held_back)
    }
}

#[test]
fn what_is_ordered_when() {
    let r = rules();
    let mut said = String::new();
    let mut say = |world: World, what: &str, names: &str, rules: &Rules<'_>, now: u64| {
        let _ = write!(said, "{}", world.line(what, names, rules, now));
    };
    let new = World::default;
    let life = 90 * DAY;
    say(new(), "no certificate", "b.test a.test", &r, NOW);
    say(new().after(order("a.test", NOW)), "one under way", "a.test", &r, NOW);
    let fresh = || new().with(certificate("a.test", NOW, life));
    say(fresh(), "just issued", "a.test", &r, NOW);
    say(fresh(), "at 56 days of 90", "a.test", &r, NOW + 56 * DAY);
    say(fresh(), "at 61 days of 90", "a.test", &r, NOW + 61 * DAY);
    let week = Rules { renew_before: Some(Duration::from_secs(7 * 24 * 3600)), ..r };
    say(fresh(), "61 days, a week before", "a.test", &week, NOW + 61 * DAY);
    say(fresh(), "83 days, a week before", "a.test", &week, NOW + 83 * DAY);
    let early = Rules { renew_before: Some(Duration::from_secs(400 * 24 * 3600)), ..r };
    say(fresh(), "longer before than it lives", "a.test", &early, NOW);
    let other = Rules { directory: "https://other.test/dir", ..r };
    say(fresh(), "another authority", "a.test", &other, NOW);
    for (failures, minutes) in [(1, 1), (1, 3), (2, 7), (3, 31), (4, 120), (9, 700), (9, 901)] {
        let world = new().after(failed("a.test", NOW, failures, None));
        let what = format!("{minutes}m after failure {failures}");
        say(world, &what, "a.test b.test", &r, NOW + minutes * MINUTES);
    }
    let told = || new().after(failed("a.test", NOW, 1, Some(3 * 3600)));
    say(told(), "told to wait 3h", "a.test", &r, NOW + 10 * MINUTES);
    say(told(), "waited 3h", "a.test", &r, NOW + 180 * MINUTES);
    let week_told = new().after(failed("a.test", NOW, 1, Some(7 * 24 * 3600)));
    say(week_told, "told to wait a week", "a.test", &r, NOW + DAY);
    let of_other = new().after(failed("a.test", NOW, 5, None));
    say(of_other, "failed at another authority", "a.test", &other, NOW);
    let renewal = fresh().after(failed("a.test", NOW + 61 * DAY, 1, None));
    say(renewal, "a renewal that failed", "a.test", &r, NOW + 61 * DAY);
    let ran_out = new().with(certificate("z.test", NOW - 91 * DAY, life));
    let three = ran_out.with(certificate("a.test", NOW - 61 * DAY, life));
    let three = three.after(failed("m.test", NOW - DAY, 1, None));
    say(
        three,
        "who failed less often, then who has nothing good",
        "a.test m.test n.test z.test",
        &r,
        NOW,
    );
    assert_eq!(said, include_str!("golden.txt"));
}

#[test]
fn an_hour_has_so_many_orders_whatever_is_due() {
    let rules = Rules { orders_per_hour: 2, ..rules() };
    let mut world = World::default();
    let names = "a.test b.test c.test";
    assert_eq!(world.plan(names, &rules, NOW).order, [host("a.test"), host("b.test")]);
    for at in [NOW, NOW + MINUTES] {
        world.pace = begin(&world.pace, &rules, Wall(at)).unwrap();
    }
    assert_eq!(begin(&world.pace, &rules, Wall(NOW + 2 * MINUTES)), None);
    let plan = world.plan(names, &rules, NOW + 2 * MINUTES);
    assert_eq!((plan.order.len(), plan.held_back, plan.next), (0, 3, Some(Wall(NOW + HOURS))));
    assert_eq!(world.plan(names, &rules, NOW + HOURS).order.len(), 1);
    // The clock went back by a day, and by a minute.
    assert_eq!(world.plan(names, &rules, NOW - DAY).order.len(), 2);
    assert_eq!(world.plan(names, &rules, NOW - MINUTES).order.len(), 0);
    // It keeps no more than it counts.
    let after = begin(&world.pace, &rules, Wall(NOW + DAY)).unwrap();
    assert_eq!(after.begun, [Wall(NOW + DAY)]);
}

#[test]
fn hosts_that_fail_over_and_over_leave_room_for_a_renewal() {
    let rules = Rules { orders_per_hour: 2, ..rules() };
    let mut world = World::default().with(certificate("shop.test", NOW - 61 * DAY, 90 * DAY));
    for name in ["a.test", "b.test", "c.test"] {
        world = world.after(failed(name, NOW - DAY, 5, None));
    }
    world = world.after(failed("d.test", NOW - DAY, 1, None));
    let plan = world.plan("a.test b.test c.test d.test shop.test", &rules, NOW);
    assert_eq!(plan.order, [host("shop.test"), host("d.test")]);
    assert_eq!(plan.held_back, 3);
}

#[test]
fn an_operator_may_ask_before_the_time_and_not_against_the_authority() {
    let rules = Rules { orders_per_hour: 2, ..rules() };
    let ask = |world: &World, force, now| {
        let a = [host("a.test")];
        asked(&world.knows(&a)[0], &world.pace, &rules, force, Wall(now))
    };
    let begins = |now| Asked::Begins(OrderPace { begun: vec![Wall(now)] });
    let waits = |why, at| Asked::Waits(why, Wall(at));
    let new = World::default;
    assert_eq!(ask(&new(), false, NOW), begins(NOW));
    assert_eq!(ask(&new().after(order("a.test", NOW)), true, NOW), Asked::Joins);
    // Its own pause, of ten hours and more, counts no more; the first one does, and what the authority said.
    let fails = || new().after(failed("a.test", NOW, 9, None));
    let soon = NOW + MINUTES;
    assert_eq!(ask(&fails(), true, soon), waits(NotNow::JustFailed, NOW + 2 * MINUTES));
    assert_eq!(ask(&fails(), false, NOW + 2 * MINUTES), begins(NOW + 2 * MINUTES));
    let told = || new().after(failed("a.test", NOW, 1, Some(3 * 3600)));
    let until = NOW + 3 * HOURS;
    assert_eq!(ask(&told(), true, NOW + HOURS), waits(NotNow::Told, until));
    assert_eq!(ask(&told(), false, until), begins(until));
    // A good certificate is ordered anew only by force.
    let good = || new().with(certificate("a.test", NOW, 90 * DAY));
    assert!(matches!(ask(&good(), false, soon), Asked::Waits(NotNow::NotDue, at) if at.0 > soon));
    assert_eq!(ask(&good(), true, soon), begins(soon));
    assert_eq!(ask(&good(), false, NOW + 61 * DAY), begins(NOW + 61 * DAY));
    // The hour's bound is for both.
    let full = World { pace: OrderPace { begun: vec![Wall(NOW), Wall(soon)] }, ..new() };
    let later = NOW + 2 * MINUTES;
    assert_eq!(ask(&full, true, later), waits(NotNow::HourIsFull, NOW + HOURS));
    // The clock went back: a failure that is to come says nothing.
    assert_eq!(ask(&told(), false, NOW - DAY), begins(NOW - DAY));
}

#[test]
fn what_is_good_is_not_replaced_by_what_is_not() {
    let good = certificate("a.test", NOW, 90 * DAY);
    let over = certificate("a.test", NOW - 91 * DAY, 90 * DAY);
    let is_unfit =
        |before, from, until| unfit(before, Wall(from), Wall(until), Wall(NOW)).is_some();
    // One that ran out, and one that begins tomorrow: not in the place of a good one, but rather than none.
    for (from, until) in [(NOW - 3 * DAY, NOW - DAY), (NOW + DAY, NOW + 90 * DAY)] {
        assert!(is_unfit(Some(&good), from, until));
        assert!(!is_unfit(Some(&over), from, until) && !is_unfit(None, from, until));
    }
    // One that is good is taken, also if it runs out sooner, and where clocks are a little apart.
    assert!(!is_unfit(Some(&good), NOW, NOW + DAY));
    assert!(!is_unfit(Some(&good), NOW + 4 * MINUTES, NOW + DAY));
    // One that is never good would be ordered again at once, for ever.
    for (from, until) in [(NOW, NOW), (NOW + DAY, NOW)] {
        assert!(is_unfit(None, from, until) && is_unfit(Some(&good), from, until));
    }
}

#[test]
fn a_clock_that_jumps_orders_nothing_over_and_over() {
    let rules = rules();
    let due_of = |c: &HostCertificate, now: u64| {
        let known = Known { host: &c.host, certificate: Some(c), order: None };
        due(&known, &rules, Wall(now))
    };
    // The clock is a year ahead: what the authority issues now ran out long ago by it.
    let ahead = NOW + 365 * DAY;
    let mut c = certificate("a.test", NOW, 90 * DAY);
    assert_eq!(due_of(&c, ahead), Due::Now);
    c.issued = Wall(ahead);
    assert_eq!(due_of(&c, ahead), Due::At(Wall(ahead + 30 * DAY)));
    // It is set right again: nothing waits for the year to pass.
    assert!(matches!(due_of(&c, NOW), Due::At(at) if at.0 < NOW + 61 * DAY));
    let over = failed("a.test", ahead, 9, None);
    let known = Known { host: &over.host, certificate: None, order: Some(&over) };
    assert_eq!(due(&known, &rules, Wall(NOW)), Due::Now);
}

#[test]
fn only_names_that_an_authority_can_look_at_are_ordered() {
    for (name, is) in [
        ("app.example", true),
        ("a.b.app.example", true),
        ("app.internal", true),
        ("studylab.localhost", false),
        ("localhost", false),
        ("intranet", false),
        ("127.0.0.1", false),
        ("[::1]", false),
        ("a_b.example", false),
    ] {
        assert_eq!(is_orderable(&host(name)), is, "{name}");
    }
}
