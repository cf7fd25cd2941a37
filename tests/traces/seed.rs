//! Reads the seed's page.

/// Actor, action and truth of one step.
pub type SeedStep = (String, String, String);

/// The steps of the trace under `title`.
pub fn trace(title: &str) -> Vec<SeedStep> {
    let page = include_str!("seed.txt");
    let lines: Vec<&str> = page.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let start = lines.iter().position(|l| *l == title).expect("the seed has this trace");
    // Title, request, risk; then actor, action, truth, …, until "Decision".
    let mut steps = Vec::new();
    let mut rest = &lines[start + 3..];
    while let [actor, action, truth, tail @ ..] = rest {
        if *actor == "Decision" {
            break;
        }
        let truth = truth.strip_prefix("Truth: ").expect("a step ends with its truth");
        steps.push(((*actor).into(), (*action).into(), truth.into()));
        rest = tail;
    }
    steps
}

/// The seed's risk and decision of the trace under `title`.
pub fn verdict(title: &str) -> (String, String) {
    let page = include_str!("seed.txt");
    let lines: Vec<&str> = page.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let start = lines.iter().position(|l| *l == title).expect("the seed has this trace");
    let outcome = lines[start..].iter().position(|l| *l == "Outcome").expect("it has an outcome");
    (lines[start + 2].into(), lines[start + outcome + 1].into())
}

/// The seed's steps of `title` are among `taken`, in the seed's order.
pub fn assert_contains(title: &str, taken: &[vango_edge::lifecycle::trace::StepText]) {
    let mut rest = taken.iter();
    for (actor, action, truth) in trace(title) {
        let found = rest.any(|s| s.actor == actor && s.action == action && s.truth == truth);
        assert!(
            found,
            "{title}: no step, or out of order: {actor}: {action} ({truth})\n{taken:#?}"
        );
    }
}
