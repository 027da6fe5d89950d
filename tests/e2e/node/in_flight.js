// Has COUNT updates in flight at once on one connection, each followed by another; prints how many ended with each status.
// node in_flight.js ADDRESS FOLDER_OF_THE_PROTO FOLDER_OF_GOOGLES_PROTOS COUNT
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const [address, protos, googleProtos, count] = process.argv.slice(2);
const options = { includeDirs: [protos, googleProtos], longs: String, keepCase: true };
const { bookstore } = grpc.loadPackageDefinition(protoLoader.loadSync('bookstore/v1/books.proto', options));
const client = new bookstore.v1.BookService(address, grpc.credentials.createInsecure());
const call = (method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, { deadline: Date.now() + 60_000 }, (error, response) =>
      error ? reject(error) : resolve(response)));

const { id } = await call('CreateBook', { book: { name: 'N', author: 'A', release_year: 1 } });
const ended = {};
await Promise.all(Array.from({ length: Number(count) }, async (_, place) => {
  for (let round = 0; round < 2; round++) {
    const request = { book: { id, release_year: (2 * place + round) % 2_000 }, update_mask: { paths: ['release_year'] } };
    const status = await call('UpdateBook', request).then(() => 'OK', (error) => grpc.status[error.code]);
    ended[status] = (ended[status] ?? 0) + 1;
  }
}));
await call('DeleteBook', { id });
console.log(JSON.stringify(ended));
client.close();
