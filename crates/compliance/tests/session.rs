//! Sync, ping, info.

/// The table.
#[test]
fn session() {
    qga_compliance::check("session");
}
