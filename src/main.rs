//! The one program: `patou COMMAND`.

fn main() -> std::process::ExitCode {
    patou::main()
}
