//! One message on the wire: length, request number, body.
//!
//! Length (u32, little-endian) of what follows, at most [`MAX_FRAME`](super::MAX_FRAME); the request's number (u64,
//! little-endian), the same in its answer; the body in postcard's encoding.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{Error, MAX_FRAME};

const ID: usize = 8;

/// The octets of one message.
pub(super) fn encode(id: u64, body: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut octets = vec![0; 4 + ID];
    octets = postcard::to_extend(body, octets).map_err(Error::Encode)?;
    let size = octets.len() - 4;
    let length = u32::try_from(size).ok().filter(|_| size <= MAX_FRAME).ok_or(Error::TooLarge { size })?;
    octets[..4].copy_from_slice(&length.to_le_bytes());
    octets[4..4 + ID].copy_from_slice(&id.to_le_bytes());
    Ok(octets)
}

/// Reads one message: its number and its body's octets. `None` at a clean end between messages.
///
/// Memory grows with what arrives, not with what the length claims. Not cancel-safe.
pub(super) async fn read(input: &mut (impl AsyncRead + Unpin)) -> Result<Option<(u64, Vec<u8>)>, Error> {
    let mut length = [0; 4];
    let first = input.read(&mut length).await.map_err(Error::Read)?;
    if first == 0 {
        return Ok(None);
    }
    input.read_exact(&mut length[first..]).await.map_err(Error::Read)?;
    let size = u32::from_le_bytes(length) as usize;
    if size > MAX_FRAME {
        return Err(Error::TooLarge { size });
    }
    if size < ID {
        return Err(Error::TooShort { size });
    }
    let id = input.read_u64_le().await.map_err(Error::Read)?;
    let mut body = Vec::new();
    let wanted = size - ID;
    input.take(wanted as u64).read_to_end(&mut body).await.map_err(Error::Read)?;
    if body.len() < wanted {
        return Err(Error::Read(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(Some((id, body)))
}

/// The value in the body of a message.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Error::Trailing { extra: rest.len() }),
        Err(error) => Err(Error::Decode(error)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn the_octets_of_a_message_are_frozen() {
        let octets = encode(0x0102, &("ab", 300_u16)).unwrap();
        assert_eq!(octets, [13, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 2, b'a', b'b', 0xac, 0x02]);
    }

    proptest! {
        #[test]
        fn a_message_comes_back_and_a_cut_one_does_not(id in any::<u64>(), text in ".{0,64}", cut in 1..12_usize) {
            let octets = encode(id, &text).unwrap();
            let (found, body) = block_on(read(&mut octets.as_slice())).unwrap().unwrap();
            prop_assert_eq!(found, id);
            prop_assert_eq!(decode::<String>(&body).unwrap(), text);
            prop_assert!(block_on(read(&mut &octets[..octets.len() - cut])).is_err());
        }

        #[test]
        fn any_octets_are_a_message_or_an_error(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((_, body))) = block_on(read(&mut octets.as_slice())) {
                let _ = decode::<Vec<String>>(&body);
            }
        }
    }
}
