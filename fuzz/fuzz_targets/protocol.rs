//! Control messages of any text: nothing panics, and whatever the answer, each of its payloads fits into a NOTIFY and
//! begins with the command's own word.
#![no_main]

use libfuzzer_sys::fuzz_target;
use powa_collector::control::protocol::{Answer, Message, Request, parse};
use powa_collector::server::ServerId;
use powa_collector::snapshot::plan::Refresh;

/// What NOTIFY takes is shorter than this, in bytes.
const LIMIT: usize = 8000;

fuzz_target!(|text: &str| {
    let Some(Message { command, channel, request }) = parse(text) else {
        assert!(text.is_empty() || text.starts_with(' '));
        return;
    };
    assert!(!command.is_empty() && text.starts_with(&command));
    assert!(channel.is_none_or(|channel| !channel.is_empty() && text.contains(&channel)));
    if let Ok(Request::RefreshCatalogs(_, Refresh::Named(names))) = &request {
        assert!(names.iter().all(|name| text.contains(name)));
    }
    let errors =
        request.err().into_iter().chain([Answer::Ok(text.to_owned()), Answer::Error(text.to_owned())]);
    for payload in errors.flat_map(|answer| answer.payloads(&command)) {
        assert!(payload.len() < LIMIT, "{} bytes", payload.len());
        assert!(payload.starts_with(&command) || command.len() > LIMIT / 2);
    }
    // A state is in words of ours, but let it be any, as long as one fits.
    let state: String = text.chars().take(200).collect();
    let workers = (0..200).map(|id| (ServerId(id), state.clone())).collect();
    for payload in Answer::Workers(workers).payloads("WORKERS_STATUS") {
        assert!(payload.len() < LIMIT, "{} bytes", payload.len());
        assert!(payload.starts_with("WORKERS_STATUS OK {") && payload.ends_with('}'));
    }
});
