//! Definitions of any text: nothing panics, and in a block that is made of one nothing names PoWA's schema.
#![no_main]

use libfuzzer_sys::fuzz_target;
use powa_collector::postgres::tokens::{Kind, tokens};
use powa_collector::snapshot::borrowed::{Definition, block};

const SCHEMA: &str = "p";

fuzz_target!(|text: &str| {
    if let Ok(tokens) = tokens(text) {
        assert_eq!(tokens.iter().map(|token| token.text).collect::<String>(), text);
    }
    let definition = Definition {
        name: "powa_x_src".to_owned(),
        language: "plpgsql".to_owned(),
        parameter: "_srvid".to_owned(),
        body: text.to_owned(),
    };
    let Ok(block) = block(&definition, SCHEMA) else { return };
    let tokens = tokens(&block).expect("what is made can be read");
    let [first, _, body] = &tokens[..] else { panic!("DO and a string: {block}") };
    assert!(first.is_word("do") && body.kind == Kind::Dollar, "{block}");
    no_table_of_powa(&body.content().expect("a string"));
});

/// Tables whose names begin as PoWA's do are its own, wherever a query takes rows from.
fn no_table_of_powa(text: &str) {
    let tokens = tokens(text).expect("what is made can be read");
    let words: Vec<_> = tokens.iter().filter(|token| token.kind != Kind::Space).collect();
    for named in words.windows(4) {
        let [from, schema, dot, table] = named else { continue };
        let is_from = from.is_word("from") || from.is_word("join");
        let is_powas = schema.name().as_deref() == Some(SCHEMA) && dot.is_sign(".");
        let name = table.name().unwrap_or_default();
        assert!(!(is_from && is_powas && name.starts_with("powa_")), "{text}");
    }
    for inner in tokens.iter().filter(|token| token.kind == Kind::Dollar) {
        no_table_of_powa(&inner.content().expect("a string"));
    }
}
