//! Asks the server for the characters of its encoding, as it would write them for a client in UTF-8.

use tokio_postgres::Client;

use super::error::InspectError;
use crate::core::charset::Charset;

const WHAT: &str = "the characters of the server's encoding";

/// The encoding of the session's database.
///
/// # Errors
/// [`InspectError`].
pub async fn charset(client: &Client) -> Result<Charset, InspectError> {
    let failed = |source| InspectError::Query { what: WHAT, source };
    let one = async |sql: &str| -> Result<String, InspectError> {
        client.query_one(sql, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)
    };
    let name = one("select pg_catalog.current_setting('server_encoding')").await?;
    if matches!(name.as_str(), "UTF8" | "SQL_ASCII") {
        return Ok(Charset::AsItIs);
    }
    client.batch_execute(CHARACTERS).await.map_err(failed)?;
    let lines = one("select pg_catalog.current_setting('outbox.characters')").await?;
    client.batch_execute("reset outbox.characters").await.map_err(failed)?;
    Charset::parse(&name, &lines).ok_or_else(|| InspectError::Shape {
        what: WHAT,
        source: serde::de::Error::custom("no table of characters"),
    })
}

/// Nothing but a block can continue after a character that there is not. Mostly all of a row are there, and
/// only the others are tried one by one. The leads are those of PostgreSQL's EUC encodings.
const CHARACTERS: &str = "do $$ \
declare \
    encoding constant text := current_setting('server_encoding'); \
    width constant int := pg_encoding_max_length(pg_char_to_encoding(encoding)); \
    lasts constant int[] := array(select generate_series( \
        case when width = 1 then 128 else 161 end, case when width = 1 then 255 else 254 end)); \
    last int; lead text; line text; lines text := ''; \
begin \
    for lead in \
        select '' where width = 1 \
        union all select to_hex(n) from generate_series(161, 254) n where width > 1 \
        union all select '8e' where width > 1 \
        union all select '8f' || to_hex(n) from generate_series(161, 254) n where width > 2 \
        union all select '8e' || to_hex(p) || to_hex(n) \
            from generate_series(161, 176) p, generate_series(161, 254) n where width > 3 \
    loop \
        begin \
            line := encode(convert(decode((select string_agg(lead || to_hex(l), '0a' order by l) \
                from unnest(lasts) l), 'hex'), encoding, 'UTF8'), 'hex'); \
        exception when others then \
            line := ''; \
            foreach last in array lasts loop \
                begin \
                    line := line || encode( \
                        convert(decode(lead || to_hex(last), 'hex'), encoding, 'UTF8'), 'hex'); \
                exception when others then null; \
                end; \
                line := line || '0a'; \
            end loop; \
        end; \
        lines := lines || lead || '=' || line || ' '; \
    end loop; \
    perform set_config('outbox.characters', lines, false); \
end $$";
