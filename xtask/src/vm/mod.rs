//! temp
mod apt;
mod image;
mod progress;
/// x
#[derive(Debug)]
pub struct Skipped(pub String);
impl Skipped {
    fn because(reason: &str) -> anyhow::Error {
        anyhow::Error::new(Self(reason.into()))
    }
}
impl std::fmt::Display for Skipped {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "skipped: {}", self.0)
    }
}
impl std::error::Error for Skipped {}
/// x
pub fn main(_a: &[String]) -> anyhow::Result<()> {
    println!("{:?}", image::Image::prepare()?);
    Ok(())
}
