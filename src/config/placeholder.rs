//! Placeholders in the command and the environment of a handler: `{n}`, `{socket}` and `{port}`.

#![forbid(unsafe_code)]

/// The number of the worker, from 1: see [`with_number`].
const NUMBER: &str = "{n}";
/// The path of the Unix socket on which an `http` program has to listen.
pub(crate) const SOCKET: &str = "{socket}";
/// The TCP port of 127.0.0.1 on which an `http` program has to listen.
pub(crate) const PORT: &str = "{port}";

/// Whether `text` has this placeholder. `${n}` is a variable of a shell, and no placeholder.
pub(crate) fn contains(text: &str, placeholder: &str) -> bool {
    positions(text, placeholder).next().is_some()
}

/// `text` with `value` in the place of each `placeholder`.
pub(crate) fn replace(text: &str, placeholder: &str, value: &str) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = 0;
    for at in positions(text, placeholder) {
        replaced.push_str(&text[rest..at]);
        replaced.push_str(value);
        rest = at + placeholder.len();
    }
    replaced.push_str(&text[rest..]);
    replaced
}

/// `text` with the number of the worker in the place of each `{n}`. Not in a text with white space, which may be a script
/// with a `{n}` of its own: a script finds the number in a variable of the environment.
pub(crate) fn with_number(text: &str, number: &str) -> String {
    if has_number(text) { replace(text, NUMBER, number) } else { text.to_owned() }
}

/// Whether [`with_number`] changes `text`.
pub(crate) fn has_number(text: &str) -> bool {
    !text.contains(char::is_whitespace) && contains(text, NUMBER)
}

fn positions<'t>(text: &'t str, placeholder: &'t str) -> impl Iterator<Item = usize> + 't {
    text.match_indices(placeholder).map(|(at, _)| at).filter(|at| !text[..*at].ends_with('$'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_replaced_and_variables_of_a_shell_are_not() {
        assert_eq!(with_number("{n}-{n}.log", "12"), "12-12.log");
        assert_eq!(with_number("print(f'{n}' )", "12"), "print(f'{n}' )");
        assert_eq!(replace("{n}-{n}.log", NUMBER, "12"), "12-12.log");
        assert_eq!(replace("unix:{socket}", SOCKET, "/run/{socket}"), "unix:/run/{socket}");
        for text in ["", "for n in 1 2; do echo ${n}; done", "{N}", "{ n }"] {
            assert!(!contains(text, NUMBER) && replace(text, NUMBER, "1") == text, "{text}");
        }
        assert_eq!(replace("${port} {port} $ {port}", PORT, "80"), "${port} 80 $ 80");
    }
}
