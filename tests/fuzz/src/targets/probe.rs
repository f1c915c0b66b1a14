//! The words on `probe.sock`: a question as the dispatcher reads it, a report as the watchdog does.

use patou::probe::{Question, Report};

pub fn run(bytes: &[u8]) {
    if let Ok(question) = serde_json::from_slice::<Question>(bytes) {
        let written = serde_json::to_vec(&question).unwrap();
        assert_eq!(serde_json::from_slice::<Question>(&written).unwrap(), question);
    }
    if let Ok(report) = serde_json::from_slice::<Report>(bytes) {
        let written = serde_json::to_vec(&report).unwrap();
        assert_eq!(serde_json::from_slice::<Report>(&written).unwrap(), report);
    }
}
