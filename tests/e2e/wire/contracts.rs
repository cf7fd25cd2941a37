//! Browsers, providers and balancers as they are: methods, preflights, tokens, deliveries, assets.
