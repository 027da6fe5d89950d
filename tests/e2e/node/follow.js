// Follows the changes of books of an author while it creates, updates and deletes one, and then resumes after the first
// response. Prints the types and numbers of the changes, and how each stream ended.
// node follow.js ADDRESS FOLDER_OF_THE_PROTO FOLDER_OF_GOOGLES_PROTOS AUTHOR
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const [address, protos, googleProtos, author] = process.argv.slice(2);
const options = { includeDirs: [protos, googleProtos], longs: String, enums: String, keepCase: true };
const { bookstore } = grpc.loadPackageDefinition(protoLoader.loadSync('bookstore/v1/books.proto', options));
const client = new bookstore.v1.BookService(address, grpc.credentials.createInsecure());
const call = (method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, { deadline: Date.now() + 60_000 }, (error, response) =>
      error ? reject(error) : resolve(response)));

// Follow until `count` changes have come; `onFirst` is called after the first response.
const follow = (request, count, onFirst) =>
  new Promise((resolve) => {
    const stream = client.WatchBooks({ filter: `author = "${author}"`, ...request }, { deadline: Date.now() + 60_000 });
    const changes = [];
    let token;
    stream.on('data', (response) => {
      changes.push(...(response.changes ?? []));
      if (token === undefined) {
        token = response.resume_token;
        onFirst();
      }
      if (changes.length >= count) stream.cancel();
    });
    stream.on('error', (error) => resolve({ token, changes, ended: grpc.status[error.code] }));
  });

const change = async () => {
  const { id } = await call('CreateBook', { book: { name: 'N', author, release_year: 1 } });
  await call('UpdateBook', { book: { id, name: 'M' } });
  await call('DeleteBook', { id });
};
const first = await follow({ start: 'NOW' }, 3, change);
const resumed = await follow({ resume_token: first.token }, 3, () => {});
console.log(JSON.stringify({ first, resumed }));
client.close();
