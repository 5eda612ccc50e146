//! Other processes: the programs that clients start, the system's own programs, and who serves them.

pub mod child;
pub mod client_programs;
pub mod environment;
pub mod keeper;
pub mod kept_output;
pub mod open_files;
pub mod supervisor;
pub mod system_tool;
