use super::HolderOutput::{Changed, Renew};
use super::*;

const MS: u64 = 1_000_000;
const ME: Incarnation = Incarnation(9);

struct Node {
    holder: Holder,
    cell: Arc<LeaseCell>,
}

impl Node {
    fn joining() -> Self {
        let cell = Arc::new(LeaseCell::new());
        Self { holder: Holder::new(ME, Arc::clone(&cell)), cell }
    }

    /// Renewed at 1000 ms, granted at 1100 ms.
    fn serving() -> Self {
        let mut node = Self::joining();
        assert_eq!(node.tick(1_000), [renew(1)]);
        assert_eq!(node.complete(1_050), []);
        assert_eq!(node.granted(1_100, 1), [Changed(Standing::Serving)]);
        node
    }

    fn tick(&mut self, now_ms: u64) -> Vec<HolderOutput> {
        let mut outputs = Vec::new();
        self.holder.tick(now_ms * MS, &mut outputs);
        outputs
    }

    fn granted(&mut self, now_ms: u64, sequence: u64) -> Vec<HolderOutput> {
        let mut outputs = Vec::new();
        self.holder.on_granted(now_ms * MS, sequence, &mut outputs);
        outputs
    }

    fn complete(&mut self, now_ms: u64) -> Vec<HolderOutput> {
        let mut outputs = Vec::new();
        self.holder.on_interest_complete(now_ms * MS, &mut outputs);
        outputs
    }

    fn dead(&mut self, incarnation: Incarnation) -> Vec<HolderOutput> {
        let mut outputs = Vec::new();
        self.holder.on_dead(incarnation, &mut outputs);
        outputs
    }

    fn is_valid(&self, now_ms: u64) -> bool {
        self.cell.is_valid(now_ms * MS)
    }
}

fn renew(sequence: u64) -> HolderOutput {
    Renew { incarnation: ME, sequence }
}

#[test]
fn a_lease_is_renewed_every_300_ms() {
    let mut node = Node::joining();
    assert_eq!(node.tick(1_000), [renew(1)]);
    assert_eq!(node.tick(1_299), []);
    assert_eq!(node.tick(1_300), [renew(2)]);
}

#[test]
fn a_lease_counts_from_just_before_it_was_asked_for_less_a_tenth() {
    let node = Node::serving();
    assert!(node.is_valid(2_349), "1000 + 1350");
    assert!(!node.is_valid(2_350));
}

#[test]
fn an_answer_counts_for_the_renewal_it_answers() {
    let mut node = Node::serving();
    assert_eq!(node.tick(1_300), [renew(2)]);
    assert_eq!(node.tick(1_600), [renew(3)]);
    assert_eq!(node.granted(1_700, 2), []);
    assert!(node.is_valid(2_649) && !node.is_valid(2_650), "1300 + 1350");
    assert_eq!(node.granted(1_700, 2), [], "once");
    assert_eq!(node.granted(1_700, 99), [], "never sent");
    assert!(!node.is_valid(2_650));
}

/// Others acknowledge subscriptions without waiting for a node whose `Join` they have not applied.
#[test]
fn no_lease_counts_before_the_interest_of_all_others_is_in() {
    let mut node = Node::joining();
    assert_eq!(node.tick(1_000), [renew(1)]);
    assert_eq!(node.granted(1_100, 1), []);
    assert!(!node.is_valid(1_100));
    assert_eq!(node.complete(1_200), [Changed(Standing::Serving)]);
    assert!(node.is_valid(1_200));
}

#[test]
fn interest_that_completes_after_the_lease_ended_waits_for_the_next() {
    let mut node = Node::joining();
    node.tick(1_000);
    node.granted(1_100, 1);
    assert_eq!(node.complete(9_000), []);
    assert_eq!(node.tick(9_000), [renew(2)]);
    assert_eq!(node.granted(9_100, 2), [Changed(Standing::Serving)]);
}

#[test]
fn a_node_withholds_when_its_lease_lapsed_and_closes_its_clients_after_ten_seconds() {
    let mut node = Node::serving();
    assert_eq!(node.tick(2_349), [renew(2)]);
    assert_eq!(node.tick(2_350), [Changed(Standing::Lapsed)]);
    assert_eq!(node.tick(12_349), [renew(3)]);
    assert_eq!(node.tick(12_350), [Changed(Standing::LapsedLong)]);
    assert_eq!(node.granted(12_400, 3), [Changed(Standing::Serving)]);
    assert!(node.is_valid(12_400));
}

/// After a stop the answer to an old renewal is read from the socket.
#[test]
fn an_answer_that_waited_through_a_stop_gives_no_lease() {
    let mut node = Node::serving();
    node.tick(1_300);
    assert_eq!(node.granted(20_000, 2), [Changed(Standing::LapsedLong)]);
    assert!(!node.is_valid(20_000));
}

#[test]
fn dead_is_final() {
    let mut node = Node::serving();
    node.tick(1_300);
    assert_eq!(node.dead(Incarnation(8)), [], "an older one of this node");
    assert_eq!(node.dead(ME), [Changed(Standing::Dead)]);
    assert!(!node.is_valid(1_400));
    assert_eq!(node.granted(1_400, 2), []);
    assert!(!node.is_valid(1_400));
    assert_eq!(node.tick(9_000), []);
}

#[test]
fn unanswered_renewals_are_bounded() {
    let mut node = Node::joining();
    for round in 0..1_000 {
        node.tick(round * 300);
    }
    assert!(node.holder.unanswered.len() <= UNANSWERED_MAX);
}

#[test]
fn the_lease_of_a_cluster_of_one_never_ends() {
    assert!(LeaseCell::endless().is_valid(u64::MAX - 1));
}

/// It is renewed all the same, so it does not end at once when somebody joins.
#[test]
fn the_lease_of_a_node_that_was_never_with_others_ends_when_somebody_joins() {
    let mut node = Node::serving();
    let mut outputs = Vec::new();
    node.holder.set_alone(1_200 * MS, true, &mut outputs);
    assert!(node.is_valid(1_000_000));
    node.tick(100_000);
    assert_eq!(node.granted(100_010, 2), [], "nothing lapsed meanwhile");
    node.holder.set_alone(100_100 * MS, false, &mut outputs);
    assert_eq!(outputs, []);
    assert!(node.is_valid(101_000));
    assert!(!node.is_valid(102_000));
}

#[test]
fn a_joiner_serves_alone_only_when_it_knows_what_its_groups_want() {
    let mut node = Node::joining();
    let mut outputs = Vec::new();
    node.holder.set_alone(1_000 * MS, true, &mut outputs);
    assert_eq!(outputs, []);
    assert!(!node.is_valid(1_000));
    assert_eq!(node.complete(1_100), [Changed(Standing::Serving)]);
    assert!(node.is_valid(1_000_000));
}
