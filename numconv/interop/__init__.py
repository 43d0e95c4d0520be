"""Arrays of other libraries that take a way of their own through numconv; a room is imported with its first array."""
