//! What is logged, as lines on standard error.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Logs what is at least as important as `level` to standard error.
pub(crate) fn start(level: Level) {
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    lines.without_time().with_ansi(false).map_event_format(Lines).init();
}

/// All lines but one that the library `gotatun` would write for each packet to a host of which it is not known where it is: such hosts
/// are behind NAT and have not spoken yet.
struct Lines<F>(F);

impl<S, N, F> FormatEvent<S, N> for Lines<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if event.metadata().target().starts_with("gotatun") {
            let mut message = Message::default();
            event.record(&mut message);
            if message.0 == "No endpoint" {
                return Ok(());
            }
        }
        self.0.format_event(context, writer, event)
    }
}

/// An event's text.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
