fn main() -> std::process::ExitCode {
    hfmount::cli::run()
}
