fn main() -> std::process::ExitCode {
    acusight_agent::cli::main()
}
