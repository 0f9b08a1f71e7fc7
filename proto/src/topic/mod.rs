//! Topic Names, Topic Filters and shared subscriptions.
