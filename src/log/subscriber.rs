//! The `tracing` subscriber of every part: a filter, the fields of open spans, and one output.
//!
//! A `program` worker compiles this into its own program, without the registry and filters of `tracing-subscriber`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_core::span::Current;

use super::filter::LogFilter;
use super::journal::JournalFields;
use super::writer::{LogOutput, LogWriter};
use crate::sync::lock;

/// Writes every record that the filter selects.
pub(super) struct LogSubscriber {
    filter: LogFilter,
    writer: Arc<LogWriter>,
    spans: Mutex<HashMap<u64, OpenSpan>>,
    next_span: AtomicU64,
}

/// A span that has not been closed.
struct OpenSpan {
    metadata: &'static Metadata<'static>,
    parent: Option<Id>,
    fields: JournalFields,
    /// Handles to the span, and spans inside it.
    references: usize,
}

thread_local! {
    /// The spans that this thread is in, the innermost last.
    static ENTERED: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
}

impl LogSubscriber {
    pub(super) fn new(filter: LogFilter, writer: Arc<LogWriter>) -> Self {
        Self { filter, writer, spans: Mutex::default(), next_span: AtomicU64::new(1) }
    }

    /// The parent of a new span or of an event: the given one, or the span that this thread is in.
    fn parent(explicit: Option<&Id>, is_contextual: bool) -> Option<Id> {
        let innermost = || ENTERED.with_borrow(|entered| entered.last().cloned());
        explicit.cloned().or_else(|| if is_contextual { innermost() } else { None })
    }

    /// The fields of a span and of those around it. Inner spans override outer ones.
    fn span_fields(&self, span: Option<Id>) -> JournalFields {
        let spans = lock(&self.spans);
        let around = |id: &Id| spans.get(&id.into_u64());
        let mut chain = Vec::new();
        let mut next = span;
        while let Some(open) = next.as_ref().and_then(around) {
            chain.push(&open.fields);
            next = open.parent.clone();
        }
        let mut fields = JournalFields::default();
        chain.into_iter().rev().for_each(|outer| fields.merge(outer));
        fields
    }
}

impl Subscriber for LogSubscriber {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.selects(metadata.target(), metadata.level())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.filter.max_level())
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let id = Id::from_u64(self.next_span.fetch_add(1, Ordering::Relaxed));
        let parent = Self::parent(attributes.parent(), attributes.is_contextual());
        let mut fields = JournalFields::default();
        attributes.record(&mut fields);
        let mut spans = lock(&self.spans);
        if let Some(parent) = parent.as_ref().and_then(|parent| spans.get_mut(&parent.into_u64())) {
            parent.references += 1;
        }
        spans.insert(id.into_u64(), OpenSpan { metadata: attributes.metadata(), parent, fields, references: 1 });
        id
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        // Outside the lock: formatting a value may log.
        let mut fields = JournalFields::default();
        values.record(&mut fields);
        if let Some(span) = lock(&self.spans).get_mut(&id.into_u64()) {
            span.fields.merge(&fields);
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let record = match self.writer.output() {
            LogOutput::Journal(journal) => {
                let parent = Self::parent(event.parent(), event.is_contextual());
                journal.record(event, self.span_fields(parent))
            }
            LogOutput::Stderr(format) => format.format(event).into_bytes(),
        };
        self.writer.push(record);
    }

    fn enter(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(id.clone()));
    }

    fn exit(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| {
            if let Some(at) = entered.iter().rposition(|other| other == id) {
                entered.remove(at);
            }
        });
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some(span) = lock(&self.spans).get_mut(&id.into_u64()) {
            span.references += 1;
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut spans = lock(&self.spans);
        let mut closed = false;
        let mut next = Some(id);
        while let Some(id) = next.take() {
            let Some(span) = spans.get_mut(&id.into_u64()) else { break };
            span.references -= 1;
            if span.references == 0 {
                closed = true;
                next = spans.remove(&id.into_u64()).and_then(|span| span.parent);
            }
        }
        closed
    }

    fn current_span(&self) -> Current {
        let Some(id) = Self::parent(None, true) else { return Current::none() };
        match lock(&self.spans).get(&id.into_u64()) {
            Some(span) => Current::new(id, span.metadata),
            None => Current::none(),
        }
    }
}
