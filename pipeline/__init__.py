"""What the scripts share: the way of a message, feed -> messages -> journal -> table, and what watches over it."""
