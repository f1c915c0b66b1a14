//! The section of a pool, its keys and the valid values.

use toml::de::DeValue;

use super::read::Section;
use super::section_values::{ACCOUNT, NAME, account, address};
use super::{
    AuthorizationMode, BackgroundMode, ExitStatusMode, HandlerConfig, LimitsConfig, PoolConfig, Replacing,
    RequestBodyMode, ScriptsConfig, UpgradeProtocol,
};
use super::{fastcgi, quantity};
use crate::ids::PoolName;

const DIRECTORY: &str = "the absolute path of a directory";
const PREFIX: &str = "a path such as \"/cgi-bin\", without a slash at its end";
const READY_PATH: &str = "a path such as \"/healthz\", with or without a query";

pub(super) fn pool(s: &mut Section<'_, '_>, only: bool) -> PoolConfig {
    let default = PoolConfig::default();
    let name = s.text("name", NAME, |text| PoolName::new(text).ok()).unwrap_or_else(|| {
        s.report_missing("name", NAME);
        default.name
    });
    let address = address(s).unwrap_or_else(|| {
        if !only {
            s.report_missing("address", "the address of its workers, required with several pools");
        }
        default.address
    });
    PoolConfig {
        name,
        workers: s.integer("workers", 1..=PoolConfig::WORKERS_MAX.into(), default.workers.into()) as u16,
        handler: handler(s).unwrap_or(default.handler),
        address,
        offer_timeout: s.duration("offer_timeout", default.offer_timeout),
        claim_timeout: s.duration("claim_timeout", default.claim_timeout),
        request_timeout: s.duration("request_timeout", default.request_timeout),
        queue: s.integer("queue", 0..=1_000_000, default.queue as u64) as usize,
        queue_timeout: s.duration_or_zero("queue_timeout", default.queue_timeout),
        drain_timeout: s.duration_or_zero("drain_timeout", default.drain_timeout),
        max_requests: s.integer("max_requests", 0..=u64::MAX, default.max_requests),
        max_age: s.duration_or_zero("max_age", default.max_age),
        max_memory: s.bytes("max_memory", default.max_memory),
        ready_path: s.text("ready_path", READY_PATH, ready_path).unwrap_or_default(),
        ready_frame: s.boolean("ready_frame", default.ready_frame),
        ping: s.duration_or_zero("ping", default.ping),
        replace: s
            .choice("replace", &[("before", Replacing::Before), ("after", Replacing::After)])
            .unwrap_or(default.replace),
        upgrade: s.value("upgrade", upgrade).unwrap_or_default(),
        session_timeout: s.duration("session_timeout", default.session_timeout),
        max_sessions: s.integer("max_sessions", 0..=PoolConfig::WORKERS_MAX.into(), 0) as u16,
        request_body: s
            .choice("request_body", &[("stream", RequestBodyMode::Stream), ("spool", RequestBodyMode::Spool)])
            .unwrap_or(default.request_body),
        spool_max: s.bytes("spool_max", default.spool_max),
        spool_dir: s.text("spool_dir", DIRECTORY, directory).unwrap_or_default(),
        authorization: s
            .choice("authorization", &[("pass", AuthorizationMode::Pass), ("drop", AuthorizationMode::Drop)])
            .unwrap_or(default.authorization),
        exit_status: s
            .choice("exit_status", &[("strict", ExitStatusMode::Strict), ("ignore", ExitStatusMode::Ignore)])
            .unwrap_or(default.exit_status),
        background: s
            .choice("background", &[("kill", BackgroundMode::Kill), ("keep", BackgroundMode::Keep)])
            .unwrap_or(default.background),
        working_dir: s.text("working_dir", DIRECTORY, directory).unwrap_or_default(),
        environment: s.string_map("environment", variable).unwrap_or(default.environment),
        user: s
            .text("user", ACCOUNT, |text| if text.is_empty() { Some(String::new()) } else { account(text) })
            .unwrap_or_default(),
        limits: s.table("limits", limits).unwrap_or_default(),
    }
}

fn limits(s: &mut Section<'_, '_>) -> LimitsConfig {
    let size = "a size such as \"512M\", a percentage or \"infinity\"";
    let files = "a number, \"SOFT:HARD\" or \"infinity\"";
    LimitsConfig {
        memory_max: s.value("memory_max", |value| limit(value, size, quantity::is_memory_max)),
        cpu_quota: s.value("cpu_quota", |value| limit(value, "a percentage such as \"50%\"", quantity::is_cpu_quota)),
        tasks_max: s
            .value("tasks_max", |value| limit(value, "a number, a percentage or \"infinity\"", quantity::is_tasks_max)),
        open_files: s.value("open_files", |value| limit(value, files, quantity::is_open_files)),
    }
}

/// `"echo"`, or a table with one key whose value is a command.
fn handler(s: &mut Section<'_, '_>) -> Option<HandlerConfig> {
    if s.is_table("handler") {
        return s.table("handler", command_handler).flatten();
    }
    s.value("handler", |value| match value.as_str() {
        Some("echo") => Ok(HandlerConfig::Echo),
        Some(kind @ ("exec" | "coprocess" | "http" | "fastcgi" | "program" | "inetd")) => {
            Err(format!("a table with its command: {{ {kind} = [\"prog\", \"arg\"] }}"))
        }
        Some("scripts") => Err("a table with its directory: { scripts = \"/usr/lib/cgi-bin\" }".to_owned()),
        _ => Err("\"echo\" or { exec = [\"prog\", \"arg\"] }, with coprocess, http, fastcgi, program or inetd in the \
                  place of exec, or { scripts = \"/usr/lib/cgi-bin\" }"
            .to_owned()),
    })
}

fn command_handler(s: &mut Section<'_, '_>) -> Option<HandlerConfig> {
    let exec = s.value("exec", command).map(HandlerConfig::Exec);
    let scripts = s.text("scripts", DIRECTORY, |text| directory(text).filter(|dir| !dir.is_empty()));
    let coprocess = s.value("coprocess", command).map(HandlerConfig::Coprocess);
    let http = s.value("http", command).map(HandlerConfig::Http);
    let program = s.value("program", command).map(HandlerConfig::Program);
    let inetd = s.value("inetd", command).map(HandlerConfig::Inetd);
    let fastcgi = s.value("fastcgi", command);
    s.require_one("one of exec, scripts, coprocess, http, fastcgi, program and inetd");
    let scripts = scripts.map(|dir| {
        let prefix = s.text("prefix", PREFIX, url_prefix).unwrap_or_default();
        HandlerConfig::Scripts(ScriptsConfig { dir, prefix })
    });
    let fastcgi = fastcgi.map(|command| HandlerConfig::Fastcgi(fastcgi::handler(s, command)));
    exec.or(scripts).or(coprocess).or(http).or(fastcgi).or(program).or(inetd)
}

fn command(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let string = |item: &toml::Spanned<DeValue<'_>>| {
        item.get_ref().as_str().filter(|text| !text.contains('\0')).map(str::to_owned)
    };
    let command = value.as_array().and_then(|items| items.iter().map(string).collect::<Option<Vec<_>>>());
    let has_program = |command: &Vec<String>| command.first().is_some_and(|program| !program.is_empty());
    command.filter(has_program).ok_or_else(|| "a program and its arguments: [\"prog\", \"arg\"]".to_owned())
}

/// A list with `"websocket"`, or an empty one.
fn upgrade(value: &DeValue<'_>) -> Result<Vec<UpgradeProtocol>, String> {
    let protocol = |item: &toml::Spanned<DeValue<'_>>| match item.get_ref().as_str() {
        Some("websocket") => Some(UpgradeProtocol::Websocket),
        _ => None,
    };
    let protocols = value.as_array().and_then(|items| items.iter().map(protocol).collect::<Option<Vec<_>>>());
    protocols.filter(|all| all.len() <= 1).ok_or_else(|| "[\"websocket\"], or [] for none".to_owned())
}

/// A target of a request in origin form (RFC 9112, section 3.2.1), or nothing.
fn ready_path(text: &str) -> Option<String> {
    let is_target = |text: &str| text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    (text.is_empty() || is_target(text)).then(|| text.to_owned())
}

/// A path of plain segments, as [`PREFIX`] describes it, or nothing.
fn url_prefix(text: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+@".contains(&byte);
    let is_segment = |part: &str| !["", ".", ".."].contains(&part) && part.bytes().all(is_plain);
    let is_path = text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_segment));
    (text.is_empty() || is_path).then(|| text.to_owned())
}

fn directory(text: &str) -> Option<String> {
    (text.is_empty() || text.starts_with('/') && !text.contains('\0')).then(|| text.to_owned())
}

/// Names and values that execve(2) can pass.
fn variable(name: &str, value: &DeValue<'_>) -> Result<String, String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err("a name that is not empty and contains neither = nor NUL".to_owned());
    }
    let text = value.as_str().filter(|text| !text.contains('\0'));
    text.map(str::to_owned).ok_or_else(|| "a string without NUL".to_owned())
}

/// A limit may be an integer as well: `tasks_max = 64`.
fn limit(value: &DeValue<'_>, expected: &str, accept: fn(&str) -> bool) -> Result<String, String> {
    let text = match value {
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str()),
        other => other.as_str(),
    };
    text.filter(|text| accept(text)).map(str::to_owned).ok_or_else(|| expected.to_owned())
}
