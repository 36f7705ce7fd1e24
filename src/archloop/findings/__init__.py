"""What follows from a study's records: verdict, re-ranking, attribution; nothing is measured."""
